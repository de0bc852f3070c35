drop table change;
drop table copy;
drop table book;
