//! The part of PostgreSQL's protocol that is needed to find a statement and its answer.
//!
//! A message is a letter, a length that includes itself, and a body; the client's first messages have no letter. The server
//! ends its answer to each `Query` and `Sync`, and to the startup, with one `ReadyForQuery`. Counting both shows which
//! statement an answer belongs to, however much the client sends ahead.

const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
const GSS_REQUEST: [u8; 4] = 80_877_104_u32.to_be_bytes();

/// Splits the bytes of one direction into messages.
#[derive(Debug, Default)]
struct Frames {
    /// Whether messages have a letter.
    lettered: bool,
    header: Vec<u8>,
    body: Vec<u8>,
    /// How many bytes of the body are missing.
    missing: usize,
    /// How many bytes of the body are kept for a search.
    keep: usize,
}

/// The result of a step in a chunk.
enum Step {
    /// The header is complete.
    Begun(u8),
    /// The message is complete.
    Ended(u8),
    More,
}

impl Frames {
    fn letter(&self) -> u8 {
        if self.lettered { self.header[0] } else { 0 }
    }

    /// Takes bytes of the current message from the front of the chunk.
    fn step(&mut self, chunk: &mut &[u8]) -> Step {
        let header_length = if self.lettered { 5 } else { 4 };
        if self.header.len() < header_length {
            // The body of the message before is not searched again.
            self.body.clear();
            let (byte, rest) = chunk.split_at(1);
            *chunk = rest;
            self.header.extend_from_slice(byte);
            if self.header.len() < header_length {
                return Step::More;
            }
            let length =
                self.header[header_length - 4..].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            self.missing = length.saturating_sub(4);
            return Step::Begun(self.letter());
        }
        let (bytes, rest) = chunk.split_at(self.missing.min(chunk.len()));
        *chunk = rest;
        self.missing -= bytes.len();
        let surplus = self.body.len().saturating_sub(self.keep);
        self.body.drain(..surplus);
        self.body.extend_from_slice(bytes);
        if self.missing > 0 {
            return Step::More;
        }
        let letter = self.letter();
        self.header.clear();
        Step::Ended(letter)
    }

    /// Whether a message ends exactly at the end of the chunk.
    fn is_complete(&self) -> bool {
        self.header.len() == if self.lettered { 5 } else { 4 } && self.missing == 0
    }

    fn has(&self, text: Option<&[u8]>) -> bool {
        text.is_some_and(|text| self.body.windows(text.len()).any(|window| window == text))
    }
}

/// The texts to find in what the client sends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted<'a> {
    /// The answer to this text is to be cut.
    pub(super) answered: Option<&'a [u8]>,
    /// This text must not reach the server.
    pub(super) unsent: Option<&'a [u8]>,
}

/// Which text was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Answered,
    Unsent,
}

/// What to do with a chunk from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// How many of its bytes to pass.
    pub(super) pass: usize,
    /// Whether the withheld answer is complete.
    pub(super) finished: bool,
}

/// The state of the protocol on one connection.
#[derive(Debug, Default)]
pub(super) struct Talk {
    client: Frames,
    server: Frames,
    /// Whether the connection is encrypted.
    opaque: bool,
    /// Whether the server's next byte answers the client's request for encryption.
    yes_or_no: bool,
    asked: u64,
    answered: u64,
    /// The value of `answered` from which on an answer is to be cut.
    cut_from: Option<u64>,
    withholding: bool,
}

impl Talk {
    /// Follows the client's bytes.
    pub(super) fn hear_client(&mut self, mut chunk: &[u8], wanted: Wanted<'_>) -> Found {
        let mut found = Found::Nothing;
        let longest = wanted.answered.into_iter().chain(wanted.unsent).map(<[u8]>::len).max().unwrap_or(0);
        // Four bytes are the code that says what kind of startup message it is.
        self.client.keep = longest.max(4);
        while !self.opaque && (!chunk.is_empty() || self.client.is_complete()) {
            let step = self.client.step(&mut chunk);
            if matches!(step, Step::Begun(_)) {
                continue;
            }
            if self.client.has(wanted.unsent) {
                return Found::Unsent;
            }
            if self.cut_from.is_none() && self.client.has(wanted.answered) {
                self.cut_from = Some(self.asked);
                found = Found::Answered;
            }
            match step {
                Step::Ended(0) => match self.client.body.get(..4) {
                    Some(code) if code == SSL_REQUEST || code == GSS_REQUEST => self.yes_or_no = true,
                    _ => {
                        self.asked += 1;
                        self.client.lettered = true;
                    }
                },
                Step::Ended(b'Q' | b'S' | b'F') => self.asked += 1,
                _ => {}
            }
        }
        found
    }

    /// Follows the server's bytes.
    pub(super) fn hear_server(&mut self, chunk: &[u8]) -> Verdict {
        let mut pass = if self.withholding { 0 } else { chunk.len() };
        let mut finished = false;
        let mut rest = chunk;
        self.server.lettered = true;
        if self.yes_or_no && !rest.is_empty() {
            self.yes_or_no = false;
            self.opaque = matches!(rest[0], b'S' | b'G');
            rest = &rest[1..];
        }
        while !self.opaque && (!rest.is_empty() || self.server.is_complete()) {
            match self.server.step(&mut rest) {
                // A statement is complete or has failed.
                Step::Begun(b'C' | b'E' | b'I') if !self.withholding && self.is_to_be_cut() => {
                    self.withholding = true;
                    pass = (chunk.len() - rest.len()).saturating_sub(5);
                }
                Step::Ended(b'Z') => {
                    self.answered += 1;
                    finished |= self.withholding;
                }
                _ => {}
            }
        }
        Verdict { pass, finished }
    }

    /// Whether the server's next answer to a statement is to be cut.
    fn is_to_be_cut(&self) -> bool {
        self.cut_from.is_some_and(|from| self.answered >= from)
    }

    /// Whether part of an answer was withheld.
    pub(super) fn is_withholding(&self) -> bool {
        self.withholding
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Talk, Verdict, Wanted};

    const WANTED: Wanted<'static> = Wanted { answered: Some(b"COMMIT"), unsent: None };

    fn message(letter: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[letter][..], &length, body].concat()
    }

    fn started() -> Talk {
        let mut talk = Talk::default();
        let start = message(0, b"\0\x03\0\0user\0me\0\0").split_off(1);
        assert_eq!(talk.hear_client(&start, WANTED), Found::Nothing);
        let welcome = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
        assert_eq!(talk.hear_server(&welcome), Verdict { pass: welcome.len(), finished: false });
        talk
    }

    #[test]
    fn an_answer_is_found_however_the_bytes_are_cut() {
        let asked =
            [message(b'Q', b"insert\0"), message(b'Q', b"COMMIT\0"), message(b'Q', b"select\0")].concat();
        let first = [message(b'C', b"INSERT 0 1\0"), message(b'Z', b"T")].concat();
        let answered = [first.clone(), message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat();
        for size in 1..answered.len() {
            let mut talk = started();
            let found: Vec<Found> = asked.chunks(size).map(|chunk| talk.hear_client(chunk, WANTED)).collect();
            let verdicts: Vec<Verdict> = answered.chunks(size).map(|chunk| talk.hear_server(chunk)).collect();

            assert_eq!(found.iter().filter(|found| **found == Found::Answered).count(), 1, "{size}");
            let passed: usize = verdicts.iter().map(|verdict| verdict.pass).sum();
            // A header that the chunk cuts in two passes before its letter is known.
            assert!((first.len()..first.len() + 5).contains(&passed), "{size}: {passed}");
            assert_eq!(
                verdicts.iter().position(|verdict| verdict.finished),
                Some(verdicts.len() - 1),
                "{size}"
            );
        }
    }

    #[test]
    fn a_prepared_statement_is_answered_when_it_has_run() {
        let mut talk = started();
        let prepare = [message(b'P', b"s\0COMMIT\0\0\0"), message(b'S', b"")].concat();
        assert_eq!(talk.hear_client(&prepare, WANTED), Found::Answered);
        let prepared = [message(b'1', b""), message(b'Z', b"I")].concat();
        assert_eq!(talk.hear_server(&prepared), Verdict { pass: prepared.len(), finished: false });

        talk.hear_client(&[message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat(), WANTED);
        let done = [message(b'2', b""), message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat();

        assert_eq!(talk.hear_server(&done), Verdict { pass: 5, finished: true });
    }

    #[test]
    fn a_refused_encryption_is_followed_by_the_start() {
        let mut talk = Talk::default();
        talk.hear_client(&[0, 0, 0, 8, 4, 210, 22, 47], WANTED);
        assert_eq!(talk.hear_server(b"N"), Verdict { pass: 1, finished: false });
        talk.hear_client(&message(0, b"\0\x03\0\0user\0me\0\0")[1..], WANTED);
        talk.hear_server(&message(b'Z', b"I"));

        assert_eq!(talk.hear_client(&message(b'Q', b"COMMIT\0"), WANTED), Found::Answered);
        let answer = [message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat();
        assert_eq!(talk.hear_server(&answer), Verdict { pass: 0, finished: true });
    }

    #[test]
    fn a_refused_text_is_found_within_one_message_only() {
        let wanted = Wanted { answered: None, unsent: Some(b"COMMIT") };
        let mut talk = started();

        let halves = [message(b'Q', b"COM"), message(b'Q', b"MIT")].concat();
        assert_eq!(talk.hear_client(&halves, wanted), Found::Nothing);
        let found: Vec<Found> =
            message(b'Q', b"COMMIT\0").chunks(3).map(|chunk| talk.hear_client(chunk, wanted)).collect();
        assert_eq!(found.iter().position(|found| *found == Found::Unsent), Some(3), "{found:?}");
    }

    #[test]
    fn a_text_that_passed_before_the_search_is_not_found() {
        let mut talk = started();
        assert_eq!(talk.hear_client(&message(b'Q', b"COMMIT\0"), Wanted::default()), Found::Nothing);

        assert_eq!(talk.hear_client(&message(b'Q', b"select\0"), WANTED), Found::Nothing);
        assert_eq!(talk.hear_client(&message(b'Q', b"COMMIT\0"), WANTED), Found::Answered);
    }
}
