-- How long a build ran, in milliseconds. A program from before this column leaves it null.

alter table builds add took_ms bigint;
