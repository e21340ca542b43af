"""Step 1: object storage -> pages of ImageObject that the pipeline wants, in O(page) memory.

pages.py      globs, windows and date templates: what of a listing a run wants, page by page
splitting.py  where a range of keys is cut in two, so that two workers list it side by side
"""

from __future__ import annotations

from tasks.listing.pages import KeyFilter, Page, Selection, can_be_stored, list_pages

__all__ = ["KeyFilter", "Page", "Selection", "can_be_stored", "list_pages"]
