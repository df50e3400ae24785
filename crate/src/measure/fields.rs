//! The settings that measurements share: each is written out once, here, with what it is in documents and in the help of its
//! flag, and stands flat among a measurement's own.
//!
//! ```text
//! settings! {
//!     /// What the command does, in its help.
//!     pub struct Divergence(reference, windows) { /* fields of its own */ }
//! }
//! ```
//!
//! | group | fields | and |
//! |---|---|---|
//! | `reference` | `reference` | |
//! | `text` | `corpus`, `split` | `on` |
//! | `max_tokens` | `max_tokens` | `max_tokens` |
//! | `pieces` | `text`, `seq_len`, `max_tokens`: windows that know nothing of each other | `reads` |
//! | `windows` | `text`, `seq_len`, `stride`, `max_tokens`: windows that slide | `windows`, `reads` |
//!
//! Groups and own fields may alternate: `pub struct LongContext(reference, text) { … } (max_tokens) { … }`.
//!
//! `reads` is the text as [`Sliding`](super::window::Sliding) cuts it. Defaults are each measurement's own.

macro_rules! settings {
    ($(#[$about:meta])* pub struct $name:ident ($($shared:ident),*) $($own:tt)*) => {
        settings! { @fields $name [$(#[$about])*] [] [$($shared)*] $($own)* }
    };
    ($(#[$about:meta])* pub struct $name:ident { $($own:tt)* } $($more:tt)*) => {
        settings! { @fields $name [$(#[$about])*] [] [] { $($own)* } $($more)* }
    };
    // Own fields between shared ones.
    (@fields $name:ident $about:tt [$($done:tt)*] [] { $($own:tt)* } ($($shared:ident),*) $($more:tt)*) => {
        settings! { @fields $name $about [$($done)* $($own)*] [$($shared)*] $($more)* }
    };
    (@fields $name:ident $about:tt [$($done:tt)*] [reference $($more:ident)*] $($own:tt)*) => {
        settings! { @fields $name $about [
            $($done)*
            /// The model to compare with: a folder, a file, a hub id or random:SHAPE; by default what the model itself was
            /// loaded from, in f32.
            #[arg(long, value_name = "MODEL")]
            pub reference: Option<String>,
        ] [$($more)*] $($own)* }
    };
    (@fields $name:ident $about:tt [$($done:tt)*] [text $($more:ident)*] $($own:tt)*) => {
        settings! { @fields $name $about [
            $($done)*
            /// A text file, a JSONL file, or a folder of texts or of splits.
            #[arg(long, value_name = "PATH")]
            pub corpus: std::path::PathBuf,
            /// The split of a folder of splits; the default holds for the default corpus.
            #[arg(long)]
            pub split: Option<String>,
        ] [$($more)*] $($own)* }

        impl $name {
            /// Sets the text: a file, or a folder of texts.
            #[must_use]
            pub fn on(mut self, corpus: impl Into<std::path::PathBuf>) -> Self {
                (self.corpus, self.split) = (corpus.into(), None);
                self
            }
        }
    };
    (@fields $name:ident $about:tt [$($done:tt)*] [max_tokens $($more:ident)*] $($own:tt)*) => {
        settings! { @fields $name $about [
            $($done)*
            /// Read only the first tokens of the text.
            #[arg(long)]
            pub max_tokens: Option<usize>,
        ] [$($more)*] $($own)* }

        impl $name {
            /// Reads only the first `count` tokens.
            #[must_use]
            pub fn max_tokens(mut self, count: usize) -> Self {
                self.max_tokens = Some(count);
                self
            }
        }
    };
    (@fields $name:ident $about:tt [$($done:tt)*] [seq_len $($more:ident)*] $($own:tt)*) => {
        settings! { @fields $name $about [
            $($done)*
            /// Tokens of a window, each read from a state of zeros.
            #[arg(long)]
            pub seq_len: usize,
        ] [$($more)*] $($own)* }
    };
    (@fields $name:ident $about:tt [$($done:tt)*] [slide $($more:ident)*] $($own:tt)*) => {
        settings! { @fields $name $about [
            $($done)*
            /// Most tokens that a prediction is conditioned on.
            #[arg(long)]
            pub seq_len: usize,
            /// Tokens that a window adds; `seq_len` makes windows that share nothing.
            #[arg(long)]
            pub stride: usize,
        ] [$($more)*] $($own)* }

        impl $name {
            /// Sets window length and stride.
            #[must_use]
            pub fn windows(mut self, seq_len: usize, stride: usize) -> Self {
                (self.seq_len, self.stride) = (seq_len, stride);
                self
            }
        }
    };
    (@fields $name:ident $about:tt $done:tt [pieces $($more:ident)*] $($own:tt)*) => {
        settings! { @fields $name $about $done [text seq_len max_tokens $($more)*] $($own)* }
        settings! { @reads $name seq_len }
    };
    (@fields $name:ident $about:tt $done:tt [windows $($more:ident)*] $($own:tt)*) => {
        settings! { @fields $name $about $done [text slide max_tokens $($more)*] $($own)* }
        settings! { @reads $name stride }
    };
    (@fields $name:ident [$($about:tt)*] [$($shared:tt)*] [] { $($own:tt)* }) => {
        $($about)*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, clap::Args)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($shared)* $($own)* }
    };
    (@reads $name:ident $stride:ident) => {
        impl $name {
            fn reads(&self) -> crate::measure::window::Sliding<'_> {
                crate::measure::window::Sliding {
                    corpus: &self.corpus,
                    split: self.split.as_deref(),
                    seq_len: self.seq_len,
                    stride: self.$stride,
                    max_tokens: self.max_tokens,
                }
            }
        }
    };
}
