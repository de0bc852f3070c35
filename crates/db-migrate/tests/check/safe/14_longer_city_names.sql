-- Some cities in Wales need more room.
alter table customers alter column city type varchar(200);
