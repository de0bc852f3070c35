//! Characters that are invisible, or that change how others are shown.
//!
//! Output and command lines come from others. A character that changes the direction of text, or that has no width, can make
//! one word look like another, so it is shown by its number, `\u{202e}`: Unicode's `Bidi_Control` and
//! `Default_Ignorable_Code_Point`, annotation anchors, and line and paragraph separators. Joiners between parts of an emoji
//! (U+200D, U+FE0F) stay; elsewhere they are shown, also in scripts that join letters with them.
//!
//! `assets/common.js` does the same for the page.

use std::fmt::Write as _;

/// Whether a character is shown by its number.
pub(crate) fn is_hidden(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Writes a text with hidden characters as their numbers.
pub(crate) fn write(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let length = emoji(rest).unwrap_or_else(|| {
            if is_hidden(character) {
                write!(out, "\\u{{{:x}}}", u32::from(character)).expect("writing to a string");
            } else {
                out.push(character);
            }
            0
        });
        out.push_str(&rest[..length]);
        rest = &rest[length.max(character.len_utf8())..];
    }
}

/// A text with hidden characters as their numbers.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    write(text, &mut shown);
    shown
}

/// The length of the emoji at the beginning of a text, including its joiners.
fn emoji(text: &str) -> Option<usize> {
    let mut length = 0;
    loop {
        let mut characters = text[length..].chars();
        let picture = characters.next().filter(|character| is_picture(*character));
        let Some(picture) = picture else {
            // A joiner at the end is not part of the emoji.
            return (length > 0).then(|| length - '\u{200d}'.len_utf8());
        };
        length += picture.len_utf8();
        let mut next = characters.next();
        for part in ['\u{1f3fb}'..='\u{1f3ff}', '\u{fe0f}'..='\u{fe0f}'] {
            if let Some(character) = next.filter(|character| part.contains(character)) {
                length += character.len_utf8();
                next = characters.next();
            }
        }
        if next != Some('\u{200d}') {
            return Some(length);
        }
        length += '\u{200d}'.len_utf8();
    }
}

/// Roughly Unicode's `Extended_Pictographic`.
fn is_picture(character: char) -> bool {
    matches!(
        character,
        '\u{203c}' | '\u{2049}' | '\u{2122}' | '\u{2139}' | '\u{2194}'..='\u{21aa}' | '\u{231a}'..='\u{23fa}'
            | '\u{24c2}' | '\u{25aa}'..='\u{25fe}' | '\u{2600}'..='\u{27bf}' | '\u{2934}'..='\u{2935}'
            | '\u{2b05}'..='\u{2b55}' | '\u{3030}' | '\u{303d}' | '\u{3297}' | '\u{3299}'
            | '\u{1f000}'..='\u{1f1e5}' | '\u{1f200}'..='\u{1f3fa}' | '\u{1f400}'..='\u{1faff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_shown_by_their_numbers() {
        for (text, shown) in [
            ("de\u{202e}ni\u{202c}ed", r"de\u{202e}ni\u{202c}ed"),
            ("\u{2066}a\u{2069}\u{200e}\u{200f}\u{61c}", r"\u{2066}a\u{2069}\u{200e}\u{200f}\u{61c}"),
            ("a\u{200b}b\u{200c}c\u{200d}d\u{2060}\u{feff}", r"a\u{200b}b\u{200c}c\u{200d}d\u{2060}\u{feff}"),
            ("soft\u{ad}hyphen \u{3164} \u{115f} \u{ffa0}", r"soft\u{ad}hyphen \u{3164} \u{115f} \u{ffa0}"),
            ("one\u{2028}two\u{2029}", r"one\u{2028}two\u{2029}"),
            ("a\u{fe0f} \u{e0041}\u{e0100}", r"a\u{fe0f} \u{e0041}\u{e0100}"),
            ("🏽\u{fe0f}", "🏽\\u{fe0f}"),
            ("👩\u{200d}x", "👩\\u{200d}x"),
            ("👩\u{200d}", "👩\\u{200d}"),
        ] {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn text_and_emoji_stay_as_they_are() {
        for text in [
            "",
            "plain",
            "é ü עברית العربية 漢字",
            "👩🏽\u{200d}🚀",
            "❤\u{fe0f}\u{200d}🔥 👨\u{200d}👩\u{200d}👧",
            "🏳\u{fe0f}\u{200d}🌈!",
        ] {
            assert_eq!(visible(text), text);
        }
    }
}
