-- Who may do what in a cache in PostgreSQL: the database's owner makes tables, `afterimage_writer` is what the program
-- needs every day, `afterimage_reader` sees the views and nothing else. Both are groups: nobody logs in as they are.
--
--     psql --set=ON_ERROR_STOP=1 --file=tasks/cache/roles.sql DATABASE        as a superuser, once, before or after migrating
--     CREATE ROLE pipeline LOGIN PASSWORD '...' IN ROLE afterimage_writer;
--     CREATE ROLE analyst LOGIN PASSWORD '...' IN ROLE afterimage_reader;
--
-- It may run again at any time. `./afterimage migrate` runs it after each migration where it ran once, so that new tables
-- and views have their rights as well; there it makes no role. It is one statement: all of it holds, or none.
DO $roles$
DECLARE
    owner_name text;
    member text;
    found record;
BEGIN
    FOREACH member IN ARRAY ARRAY['afterimage_writer', 'afterimage_reader'] LOOP
        IF to_regrole(member) IS NULL THEN
            BEGIN
                EXECUTE 'CREATE ROLE ' || member || ' NOLOGIN';
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- Roles belong to the whole server: somebody else made it a moment ago.
            END;
        END IF;
    END LOOP;

    SELECT pg_get_userbyid(datdba) INTO owner_name FROM pg_database WHERE datname = current_database();
    IF to_regnamespace('afterimage') IS NULL THEN
        EXECUTE 'CREATE SCHEMA afterimage AUTHORIZATION ' || quote_ident(owner_name);
    END IF;
    SELECT pg_get_userbyid(nspowner) INTO owner_name FROM pg_namespace WHERE nspname = 'afterimage';

    -- Nothing is left from an older version of these lines, and nothing is open to everybody.
    EXECUTE 'REVOKE ALL ON DATABASE ' || quote_ident(current_database()) || ' FROM PUBLIC, afterimage_writer, afterimage_reader';
    EXECUTE 'GRANT CONNECT ON DATABASE ' || quote_ident(current_database()) || ' TO afterimage_writer, afterimage_reader';
    -- Many rows are copied into a temporary table first.
    EXECUTE 'GRANT TEMPORARY ON DATABASE ' || quote_ident(current_database()) || ' TO afterimage_writer';
    REVOKE ALL ON SCHEMA afterimage FROM PUBLIC, afterimage_writer, afterimage_reader;
    REVOKE ALL ON ALL TABLES IN SCHEMA afterimage FROM PUBLIC, afterimage_writer, afterimage_reader;
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA afterimage FROM PUBLIC, afterimage_writer, afterimage_reader;
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA afterimage FROM PUBLIC, afterimage_writer, afterimage_reader;
    -- A new function would be open to everybody until the next time this runs, one that acts for its owner too.
    EXECUTE 'ALTER DEFAULT PRIVILEGES FOR ROLE ' || quote_ident(owner_name) || ' REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC';
    -- What the owner makes by hand: the program can work with it at once. The exact rights come with the next migration.
    EXECUTE 'ALTER DEFAULT PRIVILEGES FOR ROLE ' || quote_ident(owner_name)
        || ' IN SCHEMA afterimage GRANT SELECT, INSERT ON TABLES TO afterimage_writer';
    EXECUTE 'ALTER DEFAULT PRIVILEGES FOR ROLE ' || quote_ident(owner_name)
        || ' IN SCHEMA afterimage GRANT USAGE ON SEQUENCES TO afterimage_writer';

    GRANT USAGE ON SCHEMA afterimage TO afterimage_writer, afterimage_reader;
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA afterimage TO afterimage_writer;
    IF to_regprocedure('afterimage.refresh_statistics()') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION afterimage.refresh_statistics() TO afterimage_writer;
    END IF;
    IF to_regprocedure('afterimage.add_partition(integer)') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION afterimage.add_partition(integer) TO afterimage_writer;
    END IF;
    FOR found IN
        SELECT relname AS name, relkind AS kind FROM pg_class
        WHERE relnamespace = 'afterimage'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') AND NOT relispartition
    LOOP
        IF found.kind IN ('v', 'm') THEN
            EXECUTE 'GRANT SELECT ON afterimage.' || quote_ident(found.name) || ' TO afterimage_writer, afterimage_reader';
        ELSIF found.name = 'afterimage_version' THEN
            GRANT SELECT ON afterimage.afterimage_version TO afterimage_writer;
        ELSE
            EXECUTE 'GRANT SELECT, INSERT ON afterimage.' || quote_ident(found.name) || ' TO afterimage_writer';
        END IF;
    END LOOP;

    -- What the program changes and what it removes; sources and models stay as they were written.
    FOR found IN
        SELECT * FROM (VALUES
            ('pipeline', 'UPDATE'),
            ('image', 'UPDATE'),
            ('prediction', 'UPDATE'),
            ('failure', 'UPDATE, DELETE'),
            ('run', 'UPDATE, DELETE'),
            ('work_item', 'UPDATE, DELETE'),
            ('shard', 'UPDATE, DELETE'),
            ('listing_range', 'UPDATE, DELETE'),
            ('rate', 'UPDATE'),
            ('review', 'UPDATE, DELETE'),
            ('label_count', 'DELETE'),
            ('score_count', 'DELETE'),
            ('pair_count', 'DELETE')
        ) AS wanted (name, rights)
    LOOP
        IF to_regclass('afterimage.' || found.name) IS NOT NULL THEN
            EXECUTE 'GRANT ' || found.rights || ' ON afterimage.' || found.name || ' TO afterimage_writer';
        END IF;
    END LOOP;
END
$roles$;
