//! A text in tokens, and which of its bytes each token stands for.

use std::ops::Range;

/// The tokens of a text with their places in it.
///
/// Places come from the tokenizer's own account of what it read, in bytes of the text as it was given: whatever is
/// normalized, lower-cased or left out on the way, and whatever a decoder would make of the tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The place of each token; empty where every token is one byte.
    places: Vec<Place>,
    /// Bytes of the text that the tokens were made of.
    length: usize,
}

/// What one token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub start: usize,
    pub end: usize,
    /// It stands for something that the tokenizer has no token for.
    pub unknown: bool,
}

impl Encoding {
    /// One token a byte.
    pub(super) fn of_bytes(text: &str) -> Self {
        Self { ids: text.bytes().map(u32::from).collect(), places: vec![], length: text.len() }
    }

    /// Tokens with the places that the tokenizers library tells. There a token that is part of a character has the
    /// place of the whole character; `bytes` says how many bytes a token stands for by itself, so that its share of a
    /// character is known.
    pub(super) fn of_places(
        ids: Vec<u32>,
        mut places: Vec<Place>,
        bytes: impl Fn(usize) -> usize,
        length: usize,
    ) -> Self {
        for place in &mut places {
            (place.start, place.end) = (place.start.min(length), place.end.min(length));
            place.start = place.start.min(place.end);
        }
        // From the end, since a blank that a tokenizer puts before a text counts among the bytes of the first token.
        for i in (1..places.len()).rev() {
            let (before, own) = (places[i - 1], places[i]);
            if own.start < before.end {
                let share = own.end.saturating_sub(bytes(i));
                let between = share.clamp(own.start, before.end.min(own.end).max(own.start));
                places[i].start = between;
                places[i - 1].end = between.max(before.start);
            }
        }
        Self { ids, places, length }
    }

    /// Keeps the first tokens only, and what of the text they stand for.
    pub fn truncate(&mut self, tokens: usize) {
        if tokens < self.ids.len() {
            self.ids.truncate(tokens);
            self.places.truncate(tokens);
            self.length = match self.places.last() {
                Some(last) => last.end,
                None => self.ids.len(), // a token is a byte
            };
        }
    }

    /// Bytes of the text from the first of these tokens to the last; to the end of the text, if they are the last of all.
    pub fn bytes(&self, tokens: Range<usize>) -> usize {
        if self.places.is_empty() {
            return tokens.len();
        }
        let to_the_end = tokens.end == self.ids.len();
        match self.places.get(tokens) {
            Some([]) | None => 0,
            Some(of @ [first, ..]) => {
                let end = if to_the_end { self.length } else { of[of.len() - 1].end };
                end.saturating_sub(first.start)
            }
        }
    }

    /// The tokens that stand for some of these bytes.
    pub fn tokens(&self, bytes: Range<usize>) -> Range<usize> {
        if self.places.is_empty() {
            return bytes.start.min(self.ids.len())..bytes.end.min(self.ids.len());
        }
        let first = self.places.partition_point(|place| place.end <= bytes.start);
        let last = self.places.partition_point(|place| place.start < bytes.end);
        first..last.max(first)
    }

    /// Bytes of the text that no token stands for: characters without a token, where there is none for the unknown
    /// either, and what the tokenizer takes away before it looks for tokens.
    pub fn dropped(&self) -> usize {
        self.dropped_of(0..self.length)
    }

    /// As [`dropped`](Self::dropped), of a part of the text.
    pub fn dropped_of(&self, bytes: Range<usize>) -> usize {
        if self.places.is_empty() && (!self.ids.is_empty() || self.length == 0) {
            return 0;
        }
        let within = |place: &Place| place.end.min(bytes.end).saturating_sub(place.start.max(bytes.start));
        bytes.len() - self.places.iter().map(within).sum::<usize>().min(bytes.len())
    }

    /// Tokens that stand for what the tokenizer has no token for.
    pub fn unknown(&self) -> usize {
        self.unknown_of(0..self.ids.len())
    }

    /// What of the text called `text` the tokenizer called `tokenizer` lost, in a sentence.
    pub fn loss(&self, tokenizer: &str, text: &str) -> Option<String> {
        let (dropped, unknown) = (self.dropped(), self.unknown());
        let of = |lost: usize, all: usize, what: &str| format!("{lost} of {all} {what}");
        let dropped = (dropped > 0)
            .then(|| format!("leaves out {}", of(dropped, self.length, "bytes, which nothing predicts")));
        let unknown = (unknown > 0)
            .then(|| format!("has its token for the unknown for {}", of(unknown, self.ids.len(), "tokens")));
        let losses: Vec<String> = dropped.into_iter().chain(unknown).collect();
        (!losses.is_empty()).then(|| format!("{text}: the tokenizer '{tokenizer}' {}", losses.join(" and ")))
    }

    /// As [`unknown`](Self::unknown), among some of the tokens.
    pub fn unknown_of(&self, tokens: Range<usize>) -> usize {
        self.places.get(tokens).unwrap_or_default().iter().filter(|place| place.unknown).count()
    }
}
