//! The examples of the front page. Two more run in the packages `orm` and `pooler`, which have what those need.

#[path = "../examples/cancelled.rs"]
mod cancelled;
#[path = "../examples/lost_answer.rs"]
mod lost_answer;
#[path = "../examples/plain.rs"]
mod plain;
#[path = "../examples/stopped.rs"]
mod stopped;
