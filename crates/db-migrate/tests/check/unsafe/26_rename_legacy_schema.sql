-- There will be more than one legacy system.
alter schema legacy rename to legacy_v1;
