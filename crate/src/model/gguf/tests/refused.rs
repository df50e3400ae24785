//! What is damaged, and what is not known, is refused in one sentence.

use super::written::{File, Tensor, count, number, numbers, text};
use super::*;

fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    let sentence = list(&path).err().expect("an error").to_string();
    assert!(sentence.contains("x.gguf: ") && !sentence.contains('\n'), "{sentence}");
    sentence
}

/// The sentence on a file that is whole but for `change`.
fn changed(change: impl Fn(&mut File)) -> String {
    let mut file = File::whole();
    change(&mut file);
    refused(&file.bytes())
}

fn check(sentence: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(sentence.contains(part), "{part}: {sentence}"));
}

#[test]
fn the_whole_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = open(&File::whole().save(&folder));
    let (tensors, _) = checkpoint.read(|_| Some(Wanted::Weights)).unwrap();
    // The rows of the first query head: 0 and 2 are its first half in the file, 1 and 3 its second.
    let query = rows(&tensors["model.layers.0.self_attn.q_proj.weight"]);
    let first = query[0][0];
    let starts: Vec<f32> = query.iter().map(|row| (row[0] - first) * 8.0).collect();
    assert_eq!(starts, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let mut older = File::whole();
    older.version = 2;
    assert_eq!(open(&older.save(&folder)).stated, checkpoint.stated);
}

#[test]
fn what_is_no_such_file() {
    check(&refused(b""), &["not a whole GGUF file: it does not begin with GGUF"]);
    check(&refused(b"PK\x03\x04 and so on"), &["does not begin with GGUF", "copy or download"]);
    check(&refused(b"version https://git-lfs.github.com/spec/v1\n"), &["Git LFS pointer"]);
    check(&changed(|file| file.version = 1), &["version 1, and versions 2 and 3 are read"]);
    check(&changed(|file| file.version = 3 << 24), &["big-endian"]);
    check(&changed(|file| file.set("general.architecture", text("qwen2"))), &["\"qwen2\"", "known is llama"]);
    check(&changed(|file| file.set("general.type", text("adapter"))), &["holds no model", "\"adapter\""]);
    check(&changed(|file| file.set("split.count", count(3))), &["one part of 3", "llama-gguf-split"]);
}

#[test]
fn networks_that_are_not_known() {
    let set = |key: &str, value: Vec<u8>| changed(|file| file.set(&format!("llama.{key}"), value.clone()));
    for (key, value, part) in [
        ("rope.scaling.type", text("yarn"), "\"yarn\""),
        ("rope.scaling.type", text("longrope"), "known are none and linear"),
        ("rope.scaling.factor", number(-2.0), "cannot be divided by -2"),
        ("attention.sliding_window", count(4096), "sliding window"),
        ("expert_count", count(8), "mixture of experts"),
        ("attention.scale", number(0.5), "not known here"),
        ("attention.value_length", count(8), "expected 4"),
        ("rope.dimension_count", count(2), "expected 4"),
        ("attention.head_count_kv", numbers(&[1.0]), "expected a count, found 1 numbers"),
        ("attention.head_count", count(0), "at least one head"),
        ("tensor_data_layout", text("odd"), "\"odd\""),
    ] {
        let mut file = File::whole();
        if key == "rope.dimension_count" {
            file.set("llama.attention.key_length", count(4));
        }
        file.set(&format!("llama.{key}"), value);
        check(&refused(&file.bytes()), &[&format!("llama.{key}: "), part]);
    }
    check(&set("attention.key_length", count(3)), &["heads of 3 have no pairs"]);
    check(
        &set("attention.key_length", count(8)),
        &["blk.0.attn_q.weight: expected the rows of 2 heads of 8"],
    );
    let without = |key: &str| changed(|file| file.settings.retain(|(own, _)| own != key));
    for key in ["general.architecture", "llama.block_count", "llama.context_length"] {
        check(&without(key), &[&format!("{key}: this setting is missing")]);
    }
    check(&set("block_count", count(u32::MAX)), &["blk.1.attn_norm.weight", "4294967295 layers"]);
}

#[test]
fn scaling_that_says_nothing_is_none() {
    let scaling = |settings: &[(&str, Vec<u8>)]| {
        let mut file = File::whole();
        settings.iter().for_each(|(key, value)| file.set(&format!("llama.rope.{key}"), value.clone()));
        let folder = tempfile::tempdir().unwrap();
        open(&file.save(&folder)).stated.unwrap().json.get("rope_scaling").cloned()
    };
    let linear = Some(json!({"rope_type": "linear", "factor": 2.0}));
    assert_eq!(scaling(&[("scaling.type", text("linear")), ("scaling.factor", number(2.0))]), linear);
    assert_eq!(scaling(&[("scaling.factor", number(2.0))]), linear);
    assert_eq!(scaling(&[("scale_linear", number(2.0))]), linear);
    assert_eq!(scaling(&[("scaling.type", text("none")), ("scaling.factor", number(2.0))]), None);
    assert_eq!(scaling(&[("scaling.type", text("linear"))]), None);
}

#[test]
fn tensors_that_are_not_known_or_damaged() {
    check(
        &changed(|file| file.add("blk.0.ffn_gate_inp.weight", &[8, 2])),
        &["ffn_gate_inp", "nothing is known"],
    );
    check(
        &changed(|file| file.add("blk.00.attn_norm.weight", &[8])),
        &["blk.00.attn_norm", "nothing is known"],
    );
    check(&changed(|file| file.add("blk.1.attn_norm.weight", &[8])), &["blk.1.attn_norm", "1 layers only"]);
    check(&changed(|file| file.add("rope_freqs.weight", &[3])), &["rope_freqs.weight: expected F32 [2]"]);
    check(&changed(|file| file.add("blk.0.attn_q.bias", &[8])), &["biases must be those of q, k and v"]);
    check(&changed(|file| file.add("output_norm.weight", &[8])), &["output_norm.weight is there twice"]);
    let embedding = |change: &dyn Fn(&mut Tensor)| changed(|file| change(file.tensor("token_embd.weight")));
    check(&embedding(&|tensor| tensor.2 = 20), &["token_embd.weight", "type IQ4_NL", "known are F32"]);
    check(&embedding(&|tensor| tensor.2 = 77), &["token_embd.weight", "type number 77"]);
    check(&embedding(&|tensor| tensor.2 = 2), &["token_embd.weight", "rows of 8 are no whole blocks of 32"]);
    check(&embedding(&|tensor| tensor.3 = 8), &["token_embd.weight", "offset 8 is no multiple of 32"]);
    check(&embedding(&|tensor| tensor.3 = 128), &["token_embd.weight and output_norm.weight overlap"]);
    for offset in [1 << 40, u64::MAX - 31] {
        check(&embedding(&|tensor| tensor.3 = offset), &["token_embd.weight", "beyond the end of the file"]);
    }
    check(&embedding(&|tensor| tensor.1 = vec![8, 1 << 40]), &["beyond the end of the file"]);
    check(&embedding(&|tensor| tensor.1 = vec![1 << 40, 1 << 40]), &["multiply beyond all bounds"]);
    check(&embedding(&|tensor| tensor.1 = vec![u64::MAX, 2]), &["multiply beyond all bounds"]);
    check(&embedding(&|tensor| tensor.1 = vec![1; 5]), &["has 5 dimensions"]);
    check(&changed(|file| file.add("a\nb", &[8])), &["not a whole GGUF file: \"a\\nb\" is no name"]);
    let twice = |file: &mut File| file.settings.push(("llama.block_count".to_string(), count(2)));
    check(&changed(twice), &["the setting llama.block_count is there twice"]);
    for alignment in [0, 48] {
        check(&changed(|file| file.set("general.alignment", count(alignment))), &["is no power of two"]);
    }
}

#[test]
fn lengths_beyond_the_file_take_no_memory() {
    let length = |kind: u32| [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &u64::MAX.to_le_bytes()].concat();
    for value in [
        length(4),
        length(8),
        length(9),
        length(0),
        [&8u32.to_le_bytes()[..], &(u64::MAX - 3).to_le_bytes()].concat(),
        // Arrays in arrays, each of one.
        [&9u32.to_le_bytes()[..], &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(1000)]
            .concat(),
        [12345u32.to_le_bytes(), [0; 4]].concat(),
        [&7u32.to_le_bytes()[..], &[2]].concat(),
    ] {
        check(
            &changed(|file| file.set("general.name", value.clone())),
            &["not a whole GGUF file: general.name: "],
        );
    }
    for counts in [[u64::MAX, 1], [1, u64::MAX]] {
        let mut bytes = File::whole().bytes();
        bytes[8..16].copy_from_slice(&counts[0].to_le_bytes());
        bytes[16..24].copy_from_slice(&counts[1].to_le_bytes());
        check(&refused(&bytes), &["not a whole GGUF file"]);
    }
}

/// Everything that is read of a file: header, tensors, tokenizer.
fn read_all(path: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(path.to_str().unwrap(), None)?;
    checkpoint.read(|_| Some(Wanted::Weights))?;
    checkpoint.own_tokenizer().transpose()?;
    Ok(())
}

#[test]
fn no_cut_and_no_flipped_byte_is_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    for name in ["q4_1.gguf", "q5_1.gguf"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for length in (0..whole.len()).step_by(64) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(list(&path).is_err(), "{name} cut at {length}");
        }
    }
    let whole = File::whole().bytes();
    for at in 0..whole.len() - File::whole().data.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            std::fs::write(&path, &bytes).unwrap();
            if let Err(error) = read_all(&path) {
                assert_ne!(error.kind(), crate::error::Kind::Internal, "byte {at} ^ {mask}: {error}");
            }
        }
    }
}
