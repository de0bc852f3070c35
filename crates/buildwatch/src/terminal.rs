//! Text for a terminal, whatever is in it.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

use crate::visible;

/// Prints to a reader that may have closed the pipe.
pub(crate) fn print_out(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

/// JSON on one line, safe for a terminal: serde escapes the control characters below U+0020; this also escapes the others and
/// invisible characters.
pub(crate) fn json_line(value: &impl Serialize) -> serde_json::Result<String> {
    let line = serde_json::to_string(value)?;
    let is_escaped = |character: char| character.is_control() || visible::is_hidden(character);
    if !line.contains(is_escaped) {
        return Ok(line);
    }
    Ok(line.chars().fold(String::with_capacity(line.len() + 5), |mut escaped, character| {
        if is_escaped(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(escaped, "\\u{unit:04x}").expect("writing to a string");
            }
        } else {
            escaped.push(character);
        }
        escaped
    }))
}

/// A message, escaped to one line.
pub(crate) fn shown(message: &str) -> String {
    shown_lines(&message.replace('\n', "\\n"))
}

/// A message of one or more lines, escaped.
pub(crate) fn shown_lines(message: &str) -> String {
    let mut bytes = Vec::new();
    show(message.as_bytes(), &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Escapes bytes so that a terminal shows them all and interprets only line ends and tabs: a control character as `cat -v`
/// shows it, a byte that is not UTF-8 as `\xff`, an invisible character by its number.
pub(crate) fn show(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        let mut text = String::with_capacity(chunk.valid().len());
        let mut characters = chunk.valid().chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\n' | '\t' => text.push(character),
                // The line end of other systems.
                '\r' if characters.peek() == Some(&'\n') => text.push(character),
                '\0'..='\x1f' => {
                    text.push('^');
                    text.push(char::from(character as u8 + b'@'));
                }
                '\x7f' => text.push_str("^?"),
                '\u{80}'..='\u{9f}' => {
                    write!(text, "\\u{{{:x}}}", u32::from(character)).expect("writing to a string");
                }
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("writing to a string");
        }
        out.extend_from_slice(if text.is_ascii() { text } else { visible::visible(&text) }.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_no_control_characters_and_means_the_same() {
        let value = "\u{9b}2J\u{7f}\u{1b}é\u{202e}\u{e0041}";

        let line = json_line(&value).expect("JSON");

        assert_eq!(line, r#""\u009b2J\u007f\u001bé\u202e\udb40\udc41""#);
        assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), value);
    }

    #[test]
    fn a_terminal_obeys_nothing_of_what_is_shown() {
        let mut shown = Vec::new();

        show(b"\x1b[31mred\x07\r\n\ta\rb\x7f \xc2\x9b2J \xff\x00 \xc3\xa9 \xe2\x80\xae\n", &mut shown);

        assert_eq!(
            String::from_utf8(shown).expect("text"),
            "^[[31mred^G\r\n\ta^Mb^? \\u{9b}2J \\xff^@ é \\u{202e}\n"
        );
    }
}
