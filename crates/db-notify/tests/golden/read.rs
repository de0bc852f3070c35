//! Reads the vectors of this folder, for the unit tests and for the tests on the wire.

/// A fixed text, and the lines below it: each a word and its value.
pub(crate) type Vector = (&'static str, Vec<(&'static str, &'static str)>);

/// The vectors of a file, each of which begins with this word.
pub(crate) fn vectors(file: &'static str, begin: &str) -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for line in file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == begin {
            vectors.push((rest, Vec::new()));
        } else {
            vectors.last_mut().expect("a vector before what it says").1.push((word, rest));
        }
    }
    assert!(!vectors.is_empty(), "no vectors");
    vectors
}

/// The entries of a vector of `wire.txt`: topics and payloads.
pub(crate) fn entries(says: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut entries = Vec::new();
    for (word, rest) in says {
        match *word {
            "topic" => entries.push((*rest, "")),
            "payload" => entries.last_mut().expect("a topic before its payload").1 = rest,
            other => panic!("{other:?} is no entry"),
        }
    }
    entries
}
