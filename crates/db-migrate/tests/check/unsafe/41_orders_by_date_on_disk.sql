-- Reports read orders by date, so lay them down in that order.
cluster orders using orders_placed_at_idx;
