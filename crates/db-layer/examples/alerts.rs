//! Prints the rules of alerts for Prometheus.

fn main() {
    print!("{}", db_layer::alerts::prometheus());
}
