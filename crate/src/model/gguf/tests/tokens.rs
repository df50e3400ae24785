//! Tokenizers against those of llama.cpp, the tokenizers library and SentencePiece.

use super::super::super::tokenizer::Tokenizer;
use super::written::{File, text, texts};
use super::*;

/// The tokenizer of a file of the fixture.
fn tokenizer(name: &str) -> Tokenizer {
    open(&fixture(name)).own_tokenizer().unwrap().unwrap().0
}

/// Holds a tokenizer to texts with their tokens and, where they are told, what those are decoded to.
pub(super) fn compare(tokenizer: &Tokenizer, texts: &Value) {
    for golden in texts.as_array().unwrap() {
        let text = golden["text"].as_str().unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(json!(ids), golden["ids"], "{text:?}");
        if let Some(decoded) = golden.get("decoded") {
            assert_eq!(&json!(tokenizer.decode(&ids).unwrap()), decoded, "{text:?}");
        }
        // A text with its places is the same text.
        let encoding = tokenizer.encoding(text).unwrap();
        assert_eq!((encoding.ids.clone(), encoding.dropped()), (ids, 0), "{text:?}");
        assert_eq!(encoding.bytes(0..encoding.ids.len()), text.len(), "{text:?}");
    }
    println!("{} texts", texts.as_array().unwrap().len());
}

#[test]
fn texts_become_the_tokens_of_others_and_texts_again() {
    let golden = golden("tokenizers.json");
    for (kind, file) in [("gpt2", "f32"), ("smollm", "q4_1"), ("spm", "q8_0")] {
        assert_eq!(golden["encodings"][kind].as_array().unwrap().len(), 23);
        compare(&tokenizer(&format!("{file}.gguf")), &golden["encodings"][kind]);
    }
    for (kind, about) in golden["tokenizers"].as_object().unwrap() {
        for name in about["files"].as_array().unwrap() {
            let tokenizer = tokenizer(&format!("{}.gguf", name.as_str().unwrap()));
            assert_eq!(json!(tokenizer.vocab_size()), about["vocabulary"], "{name}");
            compare(&tokenizer, &golden["encodings"][kind]);
        }
    }
}

#[test]
fn a_tokenizer_has_one_hash_whatever_file_it_is_in() {
    let (f32, q4) = (tokenizer("f32.gguf"), tokenizer("q4_0.gguf"));
    assert_eq!(f32.hash(), q4.hash());
    assert_eq!((f32.name(), q4.name()), ("f32.gguf", "q4_0.gguf"));
    // Records hold these: another text of a tokenizer.json would make them of another tokenizer.
    let hashes =
        ["f32", "q4_1", "q8_0"].map(|name| tokenizer(&format!("{name}.gguf")).hash()[..16].to_string());
    assert_eq!(hashes, HASHES);
}

const HASHES: [&str; 3] = ["b7945459e314e03d", "3312b201d55bd480", "c0ef7317808ee99e"];

#[test]
fn the_file_of_a_tokenizer_says_what_other_readers_add() {
    let Tokenizer::Pieces(pieces) = tokenizer("q8_0.gguf") else { panic!() };
    let library = tokenizers::Tokenizer::from_bytes(pieces.file()).unwrap();
    assert_eq!(library.encode("a", true).unwrap().get_ids(), [1, 261]);
    let config = crate::json::parse(pieces.config().unwrap()).unwrap();
    assert_eq!((&config["bos_token"], &config["unk_token"]), (&json!("<s>"), &json!("<unk>")));
    assert_eq!((&config["add_bos_token"], &config["add_eos_token"]), (&json!(true), &json!(false)));
    let Tokenizer::Pieces(pieces) = tokenizer("q4_1.gguf") else { panic!() };
    let library = tokenizers::Tokenizer::from_bytes(pieces.file()).unwrap();
    assert_eq!(library.encode("a", true).unwrap().get_ids().len(), 1);
}

#[test]
fn kinds_that_are_not_known_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut File)| {
        let mut file = File::whole();
        change(&mut file);
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = open(&file.save(&folder));
        checkpoint.own_tokenizer().unwrap().unwrap_err().to_string()
    };
    let set = |key: &str, value: Vec<u8>| {
        let key = format!("tokenizer.ggml.{key}");
        refused(&move |file: &mut File| file.set(&key, value.clone()))
    };
    for (sentence, parts) in [
        (set("model", text("bert")), ["tokenizer.ggml.model", "\"bert\"", "gpt2 and llama"]),
        (set("pre", text("qwen2")), ["tokenizer.ggml.pre", "\"qwen2\"", "gpt-2 and smollm"]),
        (set("merges", texts(&["ab"])), ["tokenizer.ggml.merges", "\"ab\"", "two tokens"]),
        (set("merges", texts(&["a x"])), ["tokenizer.ggml.merges", "\"a x\"", "no token"]),
        (
            set("tokens", texts(&["a", "b", "a", "d"])),
            ["tokenizer.ggml.tokens", "\"a\"", "token 0 and token 2"],
        ),
    ] {
        assert!(sentence.contains("x.gguf: "), "{sentence}");
        parts.iter().for_each(|part| assert!(sentence.contains(part), "{part}: {sentence}"));
    }
    let missing = refused(&|file| file.settings.retain(|(key, _)| key != "tokenizer.ggml.pre"));
    assert!(missing.contains("tokenizer.ggml.pre: this setting is missing"), "{missing}");
}

#[test]
fn pieces_without_letters_of_their_own_are_refused_and_equal_scores_told() {
    let typed = |pieces: &[&str], scores: &[f32], kinds: &[i32]| {
        let mut file = File::whole();
        file.set("tokenizer.ggml.model", text("llama"));
        file.set("tokenizer.ggml.pre", text("default"));
        file.set("tokenizer.ggml.tokens", texts(pieces));
        file.set("tokenizer.ggml.scores", written::numbers(scores));
        file.set("tokenizer.ggml.token_type", written::integers(kinds));
        let folder = tempfile::tempdir().unwrap();
        open(&file.save(&folder)).own_tokenizer().unwrap()
    };
    let made = |pieces: &[&str], scores: &[f32]| typed(pieces, scores, &vec![1; pieces.len()]);
    let refused = made(&["a", "▁", "ab", "▁a"], &[0.0; 4]).unwrap_err().to_string();
    assert!(refused.contains("\"ab\" has 'b' in it"), "{refused}");
    let (tokenizer, told) = made(&["a", "b", "▁", "▁a", "ab"], &[-3.0, -4.0, -5.0, -2.0, -1.0]).unwrap();
    assert_eq!((tokenizer.encode("ab").unwrap(), told), (vec![2, 4], None));
    let (_, told) = made(&["a", "b", "▁", "▁a", "ab"], &[-3.0, -4.0, -5.0, 0.0, -0.0]).unwrap();
    assert!(told.unwrap().contains("such as \"▁a\" and \"ab\""));
    // Two blanks that a user made a token are found in the text as it is; their mark would not be.
    let (tokenizer, _) = typed(&["a", "▁", "▁a", "  "], &[-1.0, -2.0, 0.0, 0.0], &[1, 1, 1, 4]).unwrap();
    assert_eq!(tokenizer.encode("a  a a").unwrap(), [2, 3, 2, 2]);
    let refused = typed(&["a", "▁", "▁a", "▁▁"], &[-1.0, -2.0, 0.0, 0.0], &[1, 1, 1, 4]).unwrap_err();
    assert!(refused.to_string().contains("\"▁▁\" of the user"), "{refused}");
    assert!(typed(&["a"], &[0.0], &[7]).unwrap_err().to_string().contains("no token is of type 7"));
    assert!(typed(&["a"], &[0.0], &[1, 1]).unwrap_err().to_string().contains("types of 1 tokens, found 2"));
}
