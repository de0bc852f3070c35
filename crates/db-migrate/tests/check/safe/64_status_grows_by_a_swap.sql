-- A type of this file alone, made in two steps.
create type refund_state_new as enum ('asked', 'paid');
create table refunds (id bigint primary key, state refund_state_new not null);
alter type refund_state_new rename to refund_state;
