-- This index is hardly used.
drop index orders_placed_at_idx;
