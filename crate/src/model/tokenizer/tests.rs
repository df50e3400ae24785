use super::*;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::path::Path;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// A word tokenizer with a gap in its numbers.
const WORDS: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"[unk]": 0, "pass": 1, "key": 7}, "unk_token": "[unk]"}}"#;

fn words() -> Tokenizer {
    loaded(WORDS)
}

fn loaded(file: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
    Tokenizer::load(folder.path()).unwrap()
}

/// A tokenizer of these parts.
fn made(parts: &Value) -> Tokenizer {
    loaded(&file(parts))
}

fn file(parts: &Value) -> String {
    let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null});
    for (name, part) in parts.as_object().unwrap() {
        file[name] = part.clone();
    }
    file.to_string()
}

/// Byte-level pieces: all bytes, and these merges.
fn byte_level(merges: &[(&str, &str)], others: &Value) -> Tokenizer {
    let mut file: Value = serde_json::from_str(&byte_level_file(merges)).unwrap();
    for (name, part) in others.as_object().unwrap() {
        match part.as_object() {
            Some(fields) if name == "model" => {
                fields.iter().for_each(|(field, value)| file["model"][field] = value.clone());
            }
            _ => file[name] = part.clone(),
        }
    }
    loaded(&file.to_string())
}

fn byte_level_file(merges: &[(&str, &str)]) -> String {
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let mut tokens: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    tokens.sort();
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let vocab: Value =
        tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect::<Map<_, _>>().into();
    let merges: Vec<_> = merges.iter().map(|(a, b)| json!([a, b])).collect();
    file(&json!({"pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges}}))
}

/// Characters that are tokens, under a model of this kind.
fn characters(known: &str, model: &Value) -> Value {
    let vocab: Map<String, Value> =
        known.chars().enumerate().map(|(id, c)| (c.to_string(), json!(id + 1))).collect();
    let mut model = model.clone();
    model["vocab"] = vocab.into();
    if let Some(unknown) = model["unk_token"].as_str().map(str::to_string) {
        model["vocab"][unknown] = json!(0);
    }
    json!({"model": model})
}

#[test]
fn bytes_of_a_text_are_counted_in_the_text() {
    let text = "Caf\u{e9} \u{65e5}\u{672c} \u{1f600}!";
    let all = byte_level(&[], &json!({}));
    let bytes = all.encoding(text).unwrap();
    assert_eq!((bytes.ids.len(), bytes.dropped(), bytes.unknown()), (text.len(), 0, 0));
    // Of byte-level pieces each has its share of a character, wherever the text is cut.
    let (c3, a9) = ("\u{c3}", "\u{a9}");
    let (e6, middle) = ("\u{e6}", "\u{139}");
    let merged = byte_level(&[("a", "f"), (c3, a9), ("\u{120}", e6), (e6, middle)], &json!({}));
    for tokenizer in [&all, &merged] {
        let encoding = tokenizer.encoding(text).unwrap();
        let mut total = 0;
        for i in 0..encoding.ids.len() {
            let spelled = tokenizer.spell(&encoding.ids[i..=i]).chars().count();
            assert_eq!(encoding.bytes(i..i + 1), spelled, "{i}");
            total += spelled;
            let mut cut = encoding.clone();
            cut.truncate(i + 1);
            assert_eq!((cut.bytes(0..i + 1), cut.dropped()), (total, 0));
        }
        assert_eq!(total, text.len());
        assert_eq!(encoding.bytes(1..encoding.ids.len()), text.len() - 1);
    }
    // A text that begins in the middle of nothing: the first byte of a character is not scored, the others are.
    let encoding = all.encoding("\u{65e5}\u{672c}").unwrap();
    assert_eq!(encoding.bytes(1..6), 5);
}

#[test]
fn bytes_are_those_before_normalizing() {
    let text = "STRA\u{df}E \u{fb01}n e\u{301}t";
    for normalizer in [
        json!({"type": "Lowercase"}),
        json!({"type": "NFKC"}),
        json!({"type": "NFC"}),
        json!({"type": "NFD"}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}),
    ] {
        let encoding = byte_level(&[], &json!({"normalizer": normalizer})).encoding(text).unwrap();
        assert_eq!(encoding.bytes(1..encoding.ids.len()), text.len() - 1, "{normalizer}");
        assert_eq!(
            (encoding.dropped(), encoding.bytes(0..encoding.ids.len())),
            (0, text.len()),
            "{normalizer}"
        );
    }
    // Marks that a normalizer takes away are lost, whether they were written apart or not.
    let stripped = json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]});
    let encoding = byte_level(&[], &json!({"normalizer": stripped})).encoding("ae\u{301}o").unwrap();
    assert_eq!((encoding.ids.len(), encoding.dropped(), encoding.bytes(1..3)), (3, 2, 4));
    // A blank that the tokenizer puts before a text is none of its bytes.
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let prefixed = byte_level(&[("\u{120}", "\u{e6}")], &json!({"pre_tokenizer": level}));
    let encoding = prefixed.encoding("\u{65e5}\u{672c}").unwrap();
    assert_eq!((encoding.ids.len(), encoding.bytes(0..6), encoding.bytes(1..6)), (6, 6, 5));
}

#[test]
fn bytes_of_characters_that_have_no_token_are_counted() {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let text = "ab\u{65e5}\u{672c}c";
    let mut vocab: Map<String, Value> =
        bytes.iter().enumerate().map(|(id, token)| (token.clone(), json!(id + 3))).collect();
    for (id, token) in ["<unk>", "a", "c"].into_iter().enumerate() {
        vocab.insert(token.into(), json!(id));
    }
    let model =
        json!({"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true, "unk_token": "<unk>"});
    let scored: Vec<_> = (0..259)
        .map(|id| {
            let name = vocab.iter().find(|(_, of)| **of == id).unwrap().0;
            json!([name, -1.0 - f64::from(id)])
        })
        .collect();
    let unigram = json!({"type": "Unigram", "vocab": scored, "unk_id": 0, "byte_fallback": true});
    for model in [model, unigram] {
        let encoding = made(&json!({"model": model})).encoding(text).unwrap();
        assert_eq!((encoding.ids.len(), encoding.dropped(), encoding.unknown()), (9, 0, 0));
        let each: Vec<_> = (0..9).map(|i| encoding.bytes(i..i + 1)).collect();
        assert_eq!(each, [1; 9], "{model}");
    }
}

#[test]
fn what_is_left_out_is_counted() {
    let text = "ab\u{65e5}ba z\n";
    let dropping = made(&characters("ab ", &json!({"type": "BPE", "merges": []})));
    let encoding = dropping.encoding(text).unwrap();
    assert_eq!((encoding.ids.len(), encoding.dropped(), encoding.unknown()), (5, 5, 0));
    assert_eq!(encoding.bytes(1..5), text.len() - 1);
    let told = encoding.loss("few", "text").unwrap();
    assert_eq!(told, "text: the tokenizer 'few' leaves out 5 of 10 bytes, which nothing predicts");
    for (tokens, bytes, dropped) in [(2, 1, 0), (3, 5, 3), (4, 6, 3)] {
        let mut cut = encoding.clone();
        cut.truncate(tokens);
        assert_eq!((cut.bytes(1..tokens), cut.dropped()), (bytes, dropped));
        assert_eq!(cut.loss("few", "text").is_some(), dropped > 0);
    }
    let mut lower = characters("ab ", &json!({"type": "BPE", "merges": []}));
    lower["normalizer"] =
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]});
    let mut cut = made(&lower).encoding("A\u{65e5}Be\u{301}aB").unwrap();
    cut.truncate(3);
    assert_eq!((cut.bytes(1..3), cut.dropped(), cut.bytes(2..3)), (5, 6, 1));
    for (model, unknown) in [
        (json!({"type": "BPE", "merges": [], "unk_token": "[U]"}), 3),
        (json!({"type": "BPE", "merges": [], "unk_token": "[U]", "fuse_unk": true}), 2),
    ] {
        let encoding = made(&characters("ab ", &model)).encoding(text).unwrap();
        assert_eq!((encoding.dropped(), encoding.unknown()), (0, unknown));
        assert!(encoding.loss("few", "text").unwrap().contains("token for the unknown for"));
    }
    // Byte-level pieces of a vocabulary that has some bytes of a character and not the others.
    let mut parts: Value = serde_json::from_str(&byte_level_file(&[])).unwrap();
    parts["model"]["vocab"].as_object_mut().unwrap().retain(|token, _| token.is_ascii() || token == "\u{e6}");
    let encoding = loaded(&parts.to_string()).encoding("ab\u{65e5}ba\u{e9}").unwrap();
    assert_eq!((encoding.ids.len(), encoding.dropped(), encoding.bytes(0..5)), (5, 4, 9));
    let mut cut = encoding;
    cut.truncate(4);
    assert_eq!((cut.dropped(), cut.bytes(3..4), cut.bytes(0..4)), (2, 1, 6));
    // A letter that is known after one that is not, both of the same byte at first.
    let encoding =
        made(&characters("\u{e9}", &json!({"type": "BPE", "merges": []}))).encoding("b\u{e9}b").unwrap();
    assert_eq!((encoding.ids.len(), encoding.dropped(), encoding.bytes(0..1)), (1, 2, 3));
    // All of it: no token is left.
    let encoding = made(&characters("x", &json!({"type": "BPE", "merges": []}))).encoding(text).unwrap();
    assert_eq!((encoding.ids.len(), encoding.dropped()), (0, text.len()));
    // A pre-tokenizer that takes blanks away; and the unknown written out in a text is known.
    let encoding = words().encoding("key [unk] pass").unwrap();
    assert_eq!((encoding.dropped(), encoding.bytes(1..encoding.ids.len())), (2, 10));
    let mut named: Value = serde_json::from_str(WORDS).unwrap();
    named["added_tokens"] = json!([{"id": 0, "content": "[unk]", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}]);
    assert_eq!(loaded(&named.to_string()).encoding("key [unk] pass").unwrap().unknown(), 0);
    assert_eq!(loaded(&named.to_string()).encoding("key lock pass").unwrap().unknown(), 1);
}

#[test]
fn what_a_training_set_for_itself_is_off() {
    let plain = byte_level(&[("a", "b"), ("ab", "c")], &json!({}));
    let text = "abc".repeat(300);
    let template = json!({"type": "TemplateProcessing", "pair": [], "single":
        [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}});
    let truncation = json!({"direction": "Left", "max_length": 16, "strategy": "LongestFirst", "stride": 0});
    let padding = json!({"strategy": {"Fixed": 4096}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
    for others in [
        json!({"truncation": truncation}),
        json!({"padding": padding}),
        json!({"truncation": truncation, "padding": padding, "post_processor": template}),
        json!({"model": {"dropout": 0.9}}),
    ] {
        let tokenizer = byte_level(&[("a", "b"), ("ab", "c")], &others);
        assert_eq!(tokenizer.encode(&text).unwrap(), plain.encode(&text).unwrap(), "{others}");
        assert_eq!(tokenizer.encoding(&text).unwrap(), plain.encoding(&text).unwrap(), "{others}");
        // What is saved is what was given.
        let Tokenizer::Pieces(pieces) = tokenizer else { panic!("a file was read") };
        let file: Value = serde_json::from_str(pieces.file()).unwrap();
        for (name, part) in others.as_object().unwrap() {
            match name.as_str() {
                "model" => assert_eq!(file["model"]["dropout"], part["dropout"]),
                _ => assert_eq!(&file[name], part),
            }
        }
    }
}

#[test]
fn a_mark_before_a_tokenizer_changes_nothing() {
    let (plain, marked) = (words(), loaded(&format!("\u{feff}{WORDS}")));
    assert_eq!(plain.hash(), marked.hash());
    assert_eq!(marked.encode("key").unwrap(), [7]);
}

#[test]
fn tokens_are_spelled_without_a_decoder() {
    let split =
        json!({"type": "Split", "pattern": {"Regex": "(?s)."}, "behavior": "Isolated", "invert": false});
    let mut letters = characters(" 0123456789.", &json!({"type": "WordLevel", "unk_token": "[U]"}));
    letters["pre_tokenizer"] = split;
    let letters = made(&letters);
    let said = letters.encode(" 84627.").unwrap();
    assert_eq!(letters.decode(&said).unwrap(), "  8 4 6 2 7 .");
    assert_eq!(letters.spell(&said), " 84627.");
    let pairs = byte_level(&[("\u{120}", "8"), ("4", "6"), ("2", "7")], &json!({}));
    assert_eq!(pairs.encode(" 84627").unwrap().len(), 3);
    assert_eq!(pairs.spell(&pairs.encode(" 84627").unwrap()), "\u{120}84627");
    // Parts of words are joined, words are not; hexadecimal digits are none.
    let vocab = json!({"[UNK]": 0, "846": 1, "##27": 2, "27": 3, "<0x38>": 4, "<0xE6>": 5, "<s7>": 6});
    let mut parts = json!({"model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]",
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}});
    parts["added_tokens"] = json!([{"id": 6, "content": "<s7>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}]);
    let parts = made(&parts);
    assert_eq!(parts.spell(&[1, 2]).trim(), "84627");
    assert_eq!(parts.spell(&[1, 3]).trim(), "846 27");
    assert_eq!(parts.spell(&[4, 5, 6, 99]), "8\u{fffd}\u{fffd}\u{fffd}");
}

#[test]
fn without_a_tokenizer_only_text_is_refused() {
    let of = |vocab_size| Tokenizer::without_file(vocab_size, Path::new("here"));
    for vocab_size in [255, 513, 50_288] {
        let (missing, assumed) = of(vocab_size);
        assert_eq!((missing.name(), assumed), ("none", None));
        missing.check(vocab_size).unwrap();
        for error in [
            missing.encode("a").unwrap_err(),
            missing.encoding("a").unwrap_err(),
            missing.decode(&[1]).unwrap_err(),
        ] {
            let sentence = error.to_string();
            assert!(
                sentence.starts_with("here: text cannot be measured")
                    && sentence.contains(&vocab_size.to_string())
            );
            assert_eq!(sentence.contains("--tokenizer bytes"), vocab_size > 255, "{sentence}");
        }
    }
    assert!(matches!(of(256), (Tokenizer::Bytes, None)));
    for vocab_size in [257, 288, 512] {
        let (bytes, assumed) = of(vocab_size);
        assert!(matches!(bytes, Tokenizer::Bytes) && assumed.unwrap().contains(&vocab_size.to_string()));
    }
}

proptest! {
    #[test]
    fn bytes_come_back(text in ".*") {
        let tokens = Tokenizer::Bytes.encode(&text).unwrap();
        prop_assert_eq!(tokens.len(), text.len());
        prop_assert_eq!(Tokenizer::Bytes.decode(&tokens).unwrap(), text);
    }
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    assert_eq!(Tokenizer::Bytes.decode(&[104, 105, 0xc3, 33, 300]).unwrap(), "hi\u{fffd}!\u{fffd}");
}

#[test]
fn a_tokenizer_file_is_read() {
    let words = words();
    assert_eq!(words.encode("key pass lock").unwrap(), [7, 1, 0]);
    assert_eq!(words.decode(&[1, 7]).unwrap(), "pass key");
    assert_eq!(words.vocab_size(), 8);
    assert_eq!(words.hash().len(), 64);
    assert!(format!("{words:?}").len() < 200);
}

#[test]
fn a_vocabulary_beyond_the_model_is_refused_with_both_numbers() {
    assert!(words().check(8).is_ok() && words().check(50_288).is_ok() && Tokenizer::Bytes.check(256).is_ok());
    let error = words().check(5).unwrap_err().to_string();
    assert!(error.contains("has 8 tokens") && error.contains("embeddings for 5"), "{error}");
}

#[test]
fn what_is_no_tokenizer_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    assert!(Tokenizer::load(&path).unwrap_err().to_string().ends_with("no such file or folder"));
    std::fs::write(&path, "{}").unwrap();
    assert!(
        Tokenizer::load(&path).unwrap_err().to_string().contains("tokenizer.json: not a tokenizer.json: ")
    );
}

#[test]
fn what_makes_the_library_panic_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    // A prefix that is longer than what it is to be taken off.
    let merges = r#"{"model": {"type": "BPE", "continuing_subword_prefix": "long", "vocab": {"a": 0, "b": 1},
        "merges": ["a b"]}}"#;
    for (text, part) in [(r#"{"decoder": {,}}"#, "line 1 column 14"), (merges, "out of range")] {
        std::fs::write(&path, text).unwrap();
        let error = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: not a tokenizer.json: ") && error.contains(part), "{error}");
    }
}

#[test]
fn a_prompt_begins_with_what_its_file_puts_before_a_text() {
    let mut file: Value = serde_json::from_str(WORDS).unwrap();
    let special = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
    file["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "key", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[unk]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"key": special("key", 7), "[unk]": special("[unk]", 0)}});
    let tokenizer = loaded(&file.to_string());
    assert_eq!((tokenizer.opening(), tokenizer.encode("pass").unwrap()), (&[7][..], vec![1]));
    assert_eq!(tokenizer.encode_prompt("pass").unwrap(), [7, 1]);
    assert_eq!(words().encode_prompt("pass").unwrap(), [1]);
    assert!(byte_level(&[], &json!({})).opening().is_empty());
}
