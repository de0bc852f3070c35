//! The pages as HTML.

use std::fmt::Write as _;

use url::form_urlencoded;

use crate::entities::book;

pub(crate) fn list(books: &[book::Model], search: &str, page: u64, last: u64) -> String {
    let in_link: String = form_urlencoded::byte_serialize(search.as_bytes()).collect();
    let search = escaped(search);
    let mut body = format!(
        "<h1>Books</h1>\n<form><input name=search value=\"{search}\" aria-label=Search><button>Search</button></form>\n<ul>\n"
    );
    for book in books {
        let (title, author) = (escaped(&book.title), escaped(&book.author));
        writeln!(body, "<li><a href=\"/{}\">{title}</a>, {author}", book.id).expect("writing to a string");
    }
    write!(body, "</ul>\n<p>Page {page} of {last}").expect("writing to a string");
    for (other, name) in [(page - 1, "Before"), (page + 1, "After")] {
        if (1..=last).contains(&other) {
            write!(body, " <a href=\"/?search={in_link}&amp;page={other}\">{name}</a>")
                .expect("writing to a string");
        }
    }
    body += "\n<h2>Add</h2>\n<form method=post><input name=title aria-label=Title><input name=author aria-label=Author>\
             <input name=shelves aria-label=\"Shelves, separated by commas\"><button>Add</button></form>\n";
    whole(&body)
}

pub(crate) fn book(book: &book::ModelEx) -> String {
    let (title, author) = (escaped(&book.title), escaped(&book.author));
    let mut body = format!(
        "<h1>{title}</h1>\n<form method=post><input name=title value=\"{title}\" aria-label=Title>\
         <input name=author value=\"{author}\" aria-label=Author><button>Save</button></form>\n<ul>\n"
    );
    for copy in &book.copies {
        writeln!(body, "<li>On shelf {}", escaped(&copy.shelf)).expect("writing to a string");
    }
    body += "</ul>\n<p><a href=\"/\">All books</a>\n";
    whole(&body)
}

fn whole(body: &str) -> String {
    format!("<!doctype html>\n<html lang=en><meta charset=utf-8><title>Books</title>\n{body}</html>\n")
}

/// Text in which nothing is taken for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
