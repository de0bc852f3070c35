-- Gift cards are now sold in several currencies.
alter table gift_cards add column currency text not null;
