//! Any text as a file of statements: nothing panics, the statements are parts of the text in its order with nothing but white space,
//! comments and semicolons between them, and each splits to itself.
#![no_main]

use db_core::sql::{Kind, Position, split, tokens};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let joined: String = tokens(text).map(|token| token.text).collect();
    assert_eq!(joined, text);
    let Ok(statements) = split(text) else { return };
    let mut end = 0;
    for statement in statements {
        let gap = &text[end..statement.start];
        assert!(tokens(gap).all(|token| token.kind == Kind::Blank || token.text == ";"), "{gap:?}");
        end = statement.start + statement.text.len();
        assert_eq!(&text[statement.start..end], statement.text);
        let again = split(statement.text).expect("it was split before");
        assert_eq!(again.iter().map(|it| it.text).collect::<Vec<_>>(), [statement.text]);
        assert!(Position::of(text, statement.start).line >= 1);
        let _ = statement.effect();
    }
});
