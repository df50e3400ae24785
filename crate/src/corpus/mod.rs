//! Text to train on and to measure with: a corpus is a list of named documents.
//!
//! [`passkey`] and [`copying`] make the prompts of retrieval tests, which are text too; [`questions`] reads questions with choices.

pub mod copying;
pub mod passkey;
pub mod questions;

use crate::error::{Error, Result};
use crate::text;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// What stands between two documents when a corpus is read as one text (GPTQ's convention for perplexity).
pub const SEPARATOR: &str = "\n\n";

/// One text of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The file's name without its ending; in a JSON Lines file also the line, as in `lambada:17`.
    pub name: String,
    /// The text, as it was in the file.
    pub text: String,
}

/// Documents in a fixed order, with a hash of what they say.
#[derive(Clone, PartialEq, Eq)]
pub struct Corpus {
    /// The name of the file or folder that was loaded; of the folder above for a split.
    pub name: String,
    /// The split's name, if the corpus was loaded by [`Corpus::split`].
    pub split: Option<String>,
    /// The documents; those of a folder in the order of their file names.
    pub documents: Vec<Document>,
    /// SHA-256 of [`Corpus::joined`], in hexadecimal.
    pub sha256: String,
}

impl Corpus {
    /// Loads a file or a folder.
    ///
    /// A file is one document, except that `.jsonl` is one document per line, in the line's field `text`.
    /// A folder is all its `.txt`, `.raw` and `.jsonl` files, sorted by name; folders inside it are not entered.
    /// Endings are the same in capitals, and the byte order mark that some programs begin a file with is skipped.
    ///
    /// # Errors
    /// The path is missing or cannot be read, a file is not UTF-8 (the sentence gives the byte), a line is not
    /// JSON with a text, or there is no text at all.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let about = std::fs::metadata(path).map_err(|e| Error::io(path, &e))?;
        let documents = if about.is_dir() {
            let files = text_files(path)?;
            if files.is_empty() {
                return Err(Error::input("empty corpus: the folder holds no .txt, .raw or .jsonl file")
                    .at(path.display())
                    .hint(advice(path)));
            }
            let documents: Result<Vec<_>> = files.iter().map(|file| read(file)).collect();
            documents?.concat()
        } else {
            read(path)?
        };
        Self::new(file_name(path), documents).map_err(|e| e.at(path.display()))
    }

    /// Loads one split of a folder: its subfolder of that name, or its file that is named so, alone or as the
    /// last part of the name before the ending (`test.txt`, `wiki.test.raw`, `lambada_test.jsonl`). A name that differs
    /// only in capitals (`TEST.TXT`) counts where it is the only one.
    ///
    /// # Errors
    /// As [`Corpus::load`]; for an unknown split the sentence lists those that exist.
    pub fn split(folder: impl AsRef<Path>, split: &str) -> Result<Self> {
        let folder = folder.as_ref();
        let splits = splits(folder)?;
        let mut alike =
            splits.iter().filter(|(name, _)| name.eq_ignore_ascii_case(split)).map(|(_, path)| path);
        let only = alike.next().filter(|_| alike.next().is_none());
        let Some(path) = splits.get(split).or(only) else {
            let known: Vec<&str> = splits.keys().map(String::as_str).collect();
            let error = Error::input(format!("no split '{split}'")).at(folder.display());
            return Err(match known.is_empty() {
                true => error.hint("the folder has no splits; load it whole"),
                false => error.hint(format!("it has {}", known.join(", "))),
            });
        };
        let corpus = Self::load(path)?;
        Ok(Self { name: file_name(folder), split: Some(split.to_string()), ..corpus })
    }

    /// Loads a path, or a split of it where one is named.
    ///
    /// # Errors
    /// Those of [`load`](Self::load) and [`split`](Self::split).
    pub fn open(path: impl AsRef<Path>, split: Option<&str>) -> Result<Self> {
        match split {
            Some(split) => Self::split(path, split),
            None => Self::load(path),
        }
    }

    /// The title and the hash of what lies at a path, be it texts or [questions](questions::Questions).
    ///
    /// # Errors
    /// It is neither.
    pub fn identity(path: impl AsRef<Path>, split: Option<&str>) -> Result<(String, String)> {
        let path = path.as_ref();
        match Self::open(path, split) {
            Ok(corpus) => Ok((corpus.title(), corpus.sha256)),
            Err(error) => match questions::Questions::load(path) {
                Ok(questions) => Ok((questions.name, questions.sha256)),
                Err(_) => Err(error),
            },
        }
    }

    /// Makes a corpus of documents at hand.
    ///
    /// # Errors
    /// No document holds a single byte.
    pub fn new(name: impl Into<String>, documents: Vec<Document>) -> Result<Self> {
        if documents.iter().all(|document| document.text.is_empty()) {
            return Err(
                Error::input("empty corpus: there is no text in it").hint("name a file or folder with text")
            );
        }
        let mut corpus = Self { name: name.into(), split: None, documents, sha256: String::new() };
        corpus.sha256 = crate::corpus::sha256(corpus.joined().as_bytes());
        Ok(corpus)
    }

    /// The documents as one text, with a blank line (`"\n\n"`) between two.
    pub fn joined(&self) -> String {
        let texts: Vec<&str> = self.documents.iter().map(|document| document.text.as_str()).collect();
        texts.join(SEPARATOR)
    }

    /// How many bytes [`Corpus::joined`] has.
    pub fn bytes(&self) -> usize {
        let separators = SEPARATOR.len() * self.documents.len().saturating_sub(1);
        self.documents.iter().map(|document| document.text.len()).sum::<usize>() + separators
    }

    /// The name with the split, as in `corpus/test`.
    pub fn title(&self) -> String {
        match &self.split {
            Some(split) => format!("{}/{split}", self.name),
            None => self.name.clone(),
        }
    }
}

// A derived `Debug` would print megabytes of text into a cell.
impl fmt::Debug for Corpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Corpus({}: {} documents, {} bytes, sha256 {})",
            self.title(),
            self.documents.len(),
            self.bytes(),
            self.sha256
        )
    }
}

/// The endings that make a file of a folder part of a corpus.
const ENDINGS: [&str; 3] = ["txt", "raw", "jsonl"];

fn is_text(path: &Path) -> bool {
    path.is_file() && ENDINGS.iter().any(|known| ends_in(path, known))
}

/// Whether a file has this ending, in small letters or in capitals as old programs write them.
fn ends_in(path: &Path, known: &str) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(known))
}

/// All entries of a folder, sorted, so that no order of the file system leaks into a result.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, &e))? {
        paths.push(entry.map_err(|e| Error::io(folder, &e))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn text_files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| is_text(path)).collect())
}

/// The splits of a folder by name. A subfolder wins over a file of the same name.
fn splits(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let (mut splits, mut folders) = (BTreeMap::new(), BTreeMap::new());
    for path in entries(folder)? {
        if path.is_dir() && !text_files(&path)?.is_empty() {
            folders.insert(file_name(&path), path);
        } else if is_text(&path) {
            let stem = file_stem(&path);
            let name = stem.rsplit(['.', '_', '-']).next().unwrap_or(&stem).to_string();
            splits.entry(name).or_insert(path);
        }
    }
    splits.append(&mut folders);
    Ok(splits)
}

/// What to try when a folder holds no text of its own.
fn advice(folder: &Path) -> String {
    match splits(folder) {
        Ok(splits) if !splits.is_empty() => {
            let known: Vec<&str> = splits.keys().map(String::as_str).collect();
            format!("load one of its splits: {}", known.join(", "))
        }
        _ => "put text files there or name another path".to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<Document>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let text = text::decode(bytes).map_err(|e| e.at(path.display()))?;
    let name = file_stem(path);
    if ends_in(path, "jsonl") {
        read_lines(&name, &text).map_err(|e| e.at(path.display()))
    } else {
        Ok(vec![Document { name, text }])
    }
}

/// The shape of a line in a JSON Lines corpus; other fields are left alone.
#[derive(Deserialize)]
struct Line {
    text: String,
}

fn read_lines(name: &str, text: &str) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (index, line) in text.lines().enumerate() {
        // Files that were put one after the other have marks inside.
        let line = line.trim_start_matches(text::MARK);
        if line.trim().is_empty() {
            continue;
        }
        let number = index + 1;
        let Line { text } = serde_json::from_str(line).map_err(|e| {
            Error::input(format!("not a JSON object with a text: {e}"))
                .at(format!("line {number}"))
                .hint(r#"each line looks like {"text": "…"}"#)
        })?;
        documents.push(Document { name: format!("{name}:{number}"), text });
    }
    Ok(documents)
}

fn file_name(path: &Path) -> String {
    // `.` and `data/..` have no last name; the path itself then serves.
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn file_stem(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// SHA-256 in hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("test")).unwrap();
        fs::write(folder.path().join("test/b.txt"), "two").unwrap();
        fs::write(folder.path().join("test/a.raw"), "one").unwrap();
        fs::write(folder.path().join("test/README.md"), "no text").unwrap();
        fs::write(folder.path().join("wiki.valid.raw"), "three").unwrap();
        folder
    }

    #[test]
    fn a_folder_is_its_text_files_in_order() {
        let folder = folder();
        let corpus = Corpus::load(folder.path().join("test")).unwrap();
        assert_eq!(corpus.joined(), "one\n\ntwo");
        assert_eq!(corpus.bytes(), corpus.joined().len());
        assert_eq!(corpus.documents[1].name, "b");
        // sha256sum of the eight bytes, by another program
        assert_eq!(corpus.sha256, "f1687a1c91e7dabb67da04e90073a106ff7ad470212e3c98986afd56472abef8");
    }

    #[test]
    fn splits_are_subfolders_or_files() {
        let folder = folder();
        let test = Corpus::split(folder.path(), "test").unwrap();
        assert_eq!(test.split.as_deref(), Some("test"));
        assert_eq!(test.documents.len(), 2);
        assert_eq!(Corpus::split(folder.path(), "valid").unwrap().joined(), "three");
        let error = Corpus::split(folder.path(), "dev").unwrap_err().to_string();
        assert!(error.contains("no split 'dev'") && error.ends_with("it has test, valid"), "{error}");
    }

    #[test]
    fn json_lines_are_one_document_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.jsonl");
        fs::write(&path, "{\"text\": \"one\", \"id\": 7}\n\n{\"text\": \"t\\u0077o\"}\n").unwrap();
        let corpus = Corpus::load(&path).unwrap();
        assert_eq!(corpus.joined(), "one\n\ntwo");
        assert_eq!(corpus.documents[1].name, "set:3");
        fs::write(&path, "{\"text\": \"one\"}\n{\"words\": 1}\n").unwrap();
        let error = Corpus::load(&path).unwrap_err().to_string();
        assert!(error.contains("set.jsonl: line 2: ") && error.contains("text"), "{error}");
    }

    #[test]
    fn capitals_and_marks_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("B.TXT", "\u{feff}two");
        write("a.txt", "one");
        write("c.Raw", "three");
        assert_eq!(Corpus::load(folder.path()).unwrap().joined(), "two\n\none\n\nthree");
        assert_eq!(Corpus::split(folder.path(), "b").unwrap().joined(), "two");
        let lines = "\u{feff}{\"text\": \"one\"}\r\n\u{feff}{\"text\": \"two\"}\n";
        write("SET.JSONL", lines);
        write("set.jsonl", lines);
        for name in ["SET.JSONL", "set.jsonl"] {
            assert_eq!(Corpus::load(folder.path().join(name)).unwrap().joined(), "one\n\ntwo");
        }
        // Two that differ in capitals alone are two splits, and neither stands for a third spelling.
        assert_eq!(Corpus::split(folder.path(), "SET").unwrap().documents[0].name, "SET:1");
        let error = Corpus::split(folder.path(), "Set").unwrap_err().to_string();
        assert!(error.ends_with("it has B, SET, a, c, set"), "{error}");
        fs::write(folder.path().join("wide.txt"), b"\xff\xfeo\0n\0e\0").unwrap();
        let error = Corpus::load(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("wide.txt: UTF-16 text") && error.contains("save the file as UTF-8"),
            "{error}"
        );
    }

    #[test]
    fn each_bad_input_has_its_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let sentence = |path: &Path| Corpus::load(path).unwrap_err().to_string();
        assert!(sentence(&at("none.txt")).ends_with("none.txt: no such file or folder"));
        assert!(sentence(folder.path()).contains("empty corpus: the folder holds no"));
        fs::write(at("bad.txt"), b"good \xff bad").unwrap();
        assert!(sentence(&at("bad.txt")).contains("bad.txt: not UTF-8 text: the byte at offset 5"));
        fs::write(at("empty.txt"), "").unwrap();
        assert!(sentence(&at("empty.txt")).contains("empty.txt: empty corpus"));
        let parent = super::tests::folder();
        fs::remove_file(parent.path().join("wiki.valid.raw")).unwrap();
        assert!(sentence(parent.path()).ends_with("load one of its splits: test"));
    }

    #[test]
    fn the_shipped_corpus_is_whole_and_holds_plays_out() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/corpus");
        let names = |split: &str| -> Vec<String> {
            Corpus::split(&shipped, split).unwrap().documents.into_iter().map(|d| d.name).collect()
        };
        assert_eq!(names("test"), ["macbeth", "twelfth_night"]);
        assert_eq!(names("valid"), ["much_ado_about_nothing", "richard_ii"]);
        assert_eq!(names("train").len(), 41);
        // The listed hashes are those of the files as they lie there.
        let sums = fs::read_to_string(shipped.join("SHA256SUMS")).unwrap();
        assert_eq!(sums.lines().count(), 45);
        for line in sums.lines() {
            let (sum, file) = line.split_once("  ").unwrap();
            assert_eq!(sha256(&fs::read(shipped.join(file)).unwrap()), sum, "{file}");
        }
    }
}
