-- The first start of an empty database: PyFunQ's role and database. The role is no superuser, because workers run the
-- code of models; the superuser keeps no password, so that it gets in from inside this container only.
\getenv password POSTGRES_PASSWORD
CREATE ROLE pyfunq LOGIN PASSWORD :'password';
CREATE DATABASE pyfunq OWNER pyfunq;
REVOKE CONNECT, TEMPORARY ON DATABASE pyfunq FROM PUBLIC;
ALTER ROLE postgres PASSWORD NULL;
