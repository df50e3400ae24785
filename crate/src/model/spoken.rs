//! A continuation as text while it comes: whole characters, and nothing of a stop text.

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Tokens before the first new one that are put together with it: decoders look back, to a blank or a half character.
const BEFORE: usize = 5;

/// The text of a continuation, token by token.
///
/// A token may be part of a character, and a decoder may put it together with its neighbours. So what is new is the
/// difference between the text of the last few tokens without it and with it, and waits while it ends within a character.
pub(super) struct Spoken<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    /// The end of the prompt, and all tokens after it.
    ids: Vec<u32>,
    /// Tokens whose text is part of `text`, and those before which the decoder need not look.
    known: usize,
    from: usize,
    /// The continuation, up to the stop text if there was one.
    text: String,
    /// Bytes of it that were handed out.
    told: usize,
    stopped: Option<&'a str>,
}

impl<'a> Spoken<'a> {
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(BEFORE)..].to_vec();
        let known = ids.len();
        Self { tokenizer, stops, ids, known, from: 0, text: String::new(), told: 0, stopped: None }
    }

    /// Takes the next token and gives what can be shown of the text by it.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        self.ids.push(id);
        let whole = self.tokenizer.decode(&self.ids[self.from..])?;
        // Half a character is shown as the replacement character until its other half is there.
        if !whole.ends_with(char::REPLACEMENT_CHARACTER) {
            self.take(&whole)?;
        }
        let held = self.beginning_of_a_stop();
        Ok(self.tell(held))
    }

    /// What was still held back, at the end of the text.
    pub fn rest(&mut self) -> Result<&str> {
        if self.stopped.is_none() {
            let whole = self.tokenizer.decode(&self.ids[self.from..])?;
            self.take(&whole)?;
        }
        Ok(self.tell(0))
    }

    /// The stop text that ended it, if one did.
    pub fn stopped(&self) -> Option<&'a str> {
        self.stopped
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Adds to the text what `whole`, that of the tokens from `from` on, has beyond that of the known ones.
    fn take(&mut self, whole: &str) -> Result<()> {
        let known = self.tokenizer.decode(&self.ids[self.from..self.known])?;
        let new = whole.get(known.len()..).unwrap_or_default();
        if new.is_empty() {
            return Ok(());
        }
        (self.from, self.known) = (self.known, self.ids.len());
        // A stop text may have begun in what is there already.
        let longest = self.stops.iter().map(String::len).max().unwrap_or_default();
        let mut start = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        self.text.push_str(new);
        let places =
            self.stops.iter().filter_map(|stop| Some((self.text[start..].find(stop.as_str())?, stop)));
        if let Some((at, stop)) = places.min_by_key(|(at, _)| *at) {
            self.text.truncate(start + at);
            self.stopped = Some(stop);
        }
        Ok(())
    }

    /// Bytes at the end of the text that may turn out to be the beginning of a stop text.
    fn beginning_of_a_stop(&self) -> usize {
        let held = |stop: &String| {
            let mut ends = stop.char_indices().map(|(end, _)| end).rev();
            ends.find(|end| self.text.ends_with(&stop[..*end])).unwrap_or_default()
        };
        if self.stopped.is_some() { 0 } else { self.stops.iter().map(held).max().unwrap_or_default() }
    }

    fn tell(&mut self, held: usize) -> &str {
        let start = self.told;
        self.told = self.told.max(self.text.len() - held);
        &self.text[start..self.told]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces that were shown, the text, and the stop.
    fn spoken(tokens: &[u8], stops: &[&str]) -> (Vec<String>, String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut spoken = Spoken::new(&Tokenizer::Bytes, &[b'>'.into(), b' '.into()], &stops);
        let mut pieces = vec![];
        for token in tokens {
            pieces.push(spoken.push(u32::from(*token)).unwrap().to_string());
            if spoken.stopped().is_some() {
                break;
            }
        }
        pieces.push(spoken.rest().unwrap().to_string());
        let stopped = spoken.stopped().map(String::from);
        (pieces, spoken.into_text(), stopped)
    }

    #[test]
    fn no_character_is_shown_by_half() {
        let (pieces, text, _) = spoken("aé€😀z".as_bytes(), &[]);
        assert_eq!((pieces.concat().as_str(), text.as_str()), ("aé€😀z", "aé€😀z"));
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "😀", "z", ""]);
        // What never becomes a character is shown as such when it is known, or at the end.
        let (pieces, text, _) = spoken(b"a\xc3b\xf0\x9f", &[]);
        assert_eq!(pieces, ["a", "", "\u{fffd}b", "", "", "\u{fffd}"]);
        assert_eq!(text, "a\u{fffd}b\u{fffd}");
    }

    #[test]
    fn stop_texts_span_tokens_and_are_never_shown() {
        let (pieces, text, stopped) = spoken(b"one\n two\n\nthree", &["\n\n"]);
        assert_eq!((text.as_str(), stopped.as_deref()), ("one\n two", Some("\n\n")));
        // The first line's end waits until it is known to be none of a stop.
        assert_eq!(pieces, ["o", "n", "e", "", "\n ", "t", "w", "o", "", "", ""]);
        // Of several the first in the text counts.
        let (pieces, text, stopped) = spoken(b"abcd", &["cd", "bc"]);
        assert_eq!((text.as_str(), stopped.as_deref(), pieces.concat().as_str()), ("a", Some("bc"), "a"));
        // What only began like a stop is shown in the end; and a stop may hold other letters.
        let (pieces, text, stopped) = spoken("xé".as_bytes(), &["éa"]);
        assert_eq!((text.as_str(), stopped, pieces.concat().as_str()), ("xé", None, "xé"));
        let (_, text, stopped) = spoken("xéab".as_bytes(), &["éa"]);
        assert_eq!((text.as_str(), stopped.as_deref()), ("x", Some("éa")));
    }
}
