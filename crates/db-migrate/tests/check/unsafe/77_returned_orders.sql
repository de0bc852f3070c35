-- Orders can come back; those with a note about it have.
alter type order_status add value 'returned';
update orders set status = 'returned' where note like 'returned%' or id = 17;
