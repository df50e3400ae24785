//! Checkpoints as training programs leave them: the same model in each of the shapes that it may have in a file.

use super::command_line::{lowbit, refused};
use super::fixture::{FIXTURE, Folder, config, logits, tensors};
use super::pickled::{File, int};
use candle_core::{DType, Device, Tensor};
use lowbit::family::Config;
use lowbit::model::safetensors::save_safetensors;
use lowbit::model::{Loading, Model};
use serde_json::json;
use std::collections::BTreeMap;

type Tensors = BTreeMap<String, Tensor>;

/// A folder with the fixture's config.
pub fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("config.json", config().to_string());
    folder
}

/// The sentence of a folder that is refused for what it holds.
pub fn sentence(folder: &Folder) -> String {
    let (code, sentence) = refused(&["info", &folder.path().to_string_lossy()]);
    assert_eq!(code, 2, "{sentence}");
    sentence
}

pub fn renamed(tensors: &Tensors, name: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(own, tensor)| (name(own), tensor.clone())).collect()
}

fn f32s(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn weights_are_found_under_what_programs_call_them() {
    let expected = logits(&Model::load(FIXTURE).unwrap());
    for (protocol, key) in [(2, "model"), (3, "state_dict"), (4, "model_state_dict"), (5, "net"), (2, "ema")]
    {
        let mut file = File::new(protocol);
        let weights = file.weights(&tensors(), &[]);
        let step = file.storage("LongStorage", 1, 7u64.to_le_bytes().to_vec());
        let step = file.view(&step, 0, &[], &[]);
        let average = file.tensor(&f32s(&[f32::NEG_INFINITY, 1.0]));
        let state = file.dict(&[("exp_avg", average), ("step", step.clone())]);
        let optimizer = file.dict(&[("state", file.dict(&[("0", state)]))]);
        let items = [
            ("optimizer", optimizer),
            (key, weights),
            ("step", step),
            ("losses", [b"]", &b"(G\x40\x00\x00\x00\x00\x00\x00\x00NK\x07e"[..]].concat()),
            ("rng", b"C\x04\x01\x02\x03\x04".to_vec()),
        ];
        for value in [file.dict(&items), file.subclass(&items)] {
            let folder = folder();
            file.save(&folder.at("last.pt"), &value);
            let model = folder.load();
            assert!(logits(&model) == expected, "{key}");
            assert_eq!(model.unused, ["optimizer.state.0.exp_avg", "optimizer.state.0.step", "step"]);
        }
    }
}

#[test]
fn prefixes_are_taken_off() {
    let expected = logits(&Model::load(FIXTURE).unwrap());
    for prefix in ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.module."] {
        for body in ["backbone.", ""] {
            let prefixed = renamed(&tensors(), |name| format!("{prefix}{}", name.replace("backbone.", body)));
            let model = Folder::checkpoint(&prefixed, Some(&config())).load();
            assert!(logits(&model) == expected && model.unused.is_empty(), "{prefix}{body}");
        }
    }
    let mut both = tensors();
    both.extend(renamed(&tensors(), |name| format!("module.{name}")));
    let told = sentence(&Folder::checkpoint(&both, Some(&config())));
    assert!(
        told.contains("module.backbone.embeddings.weight: it is there as backbone.embeddings.weight too"),
        "{told}"
    );
    let other = renamed(&tensors(), |name| name.replace("layers.", "stages."));
    let told = sentence(&Folder::checkpoint(&other, Some(&config())));
    assert!(
        told.contains("no known model family has tensors of these names: backbone.embeddings.weight, "),
        "{told}"
    );
    assert!(told.contains(" more; this version knows: mamba2 (tensors such as backbone.layers.0."), "{told}");
    // Several networks: the one that is trained, and it is told.
    let mut averaged = renamed(&tensors(), |name| format!("model.{name}"));
    averaged.extend(renamed(&tensors(), |name| format!("ema.{name}")));
    let model = Folder::checkpoint(&averaged, Some(&config())).load();
    assert_eq!(model.assumed, ["the weights are those under model.backbone, not those under ema.backbone"]);
}

#[test]
fn views_are_read_as_what_they_are() {
    let expected = logits(&Model::load(FIXTURE).unwrap());
    let mut file = File::new(2);
    let items: Vec<(String, Vec<u8>)> = tensors()
        .iter()
        .map(|(name, tensor)| {
            let Ok((rows, cols)) = tensor.dims2() else { return (name.clone(), file.tensor(tensor)) };
            // The right half of a matrix twice as wide, whose rows lie as columns.
            let wide = Tensor::cat(&[&tensor.zeros_like().unwrap(), tensor], 1).unwrap();
            let values: Vec<f32> = wide.t().unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let storage = file.storage("FloatStorage", values.len(), bytes);
            (name.clone(), file.view(&storage, rows * cols, &[rows, cols], &[1, rows]))
        })
        .collect();
    let items: Vec<(&str, Vec<u8>)> =
        items.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let folder = folder();
    file.save(&folder.at("pytorch_model.bin"), &file.dict(&items));
    assert!(logits(&folder.load()) == expected);
    // A view that its storage has no room for.
    let storage = file.storage("FloatStorage", 4, vec![0; 16]);
    let beyond = [("w", file.view(&storage, 1, &[2, 2], &[2, 1]))];
    file.save(&folder.at("pytorch_model.bin"), &file.dict(&beyond));
    assert!(
        sentence(&folder)
            .contains("not a whole file of torch.save: w: shape [2, 2] and strides [2, 1] reach beyond")
    );
}

#[test]
fn buffers_that_nobody_needs_may_be_of_any_type() {
    let expected = logits(&Model::load(FIXTURE).unwrap());
    let path = Folder::checkpoint(&tensors(), None);
    let whole = std::fs::read(path.at("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut about: serde_json::Value = serde_json::from_slice(&whole[8..header]).unwrap();
    let mut end = whole.len() - header;
    let mut data = whole[header..].to_vec();
    for (name, dtype, bytes) in [
        ("seen", "BOOL", 2),
        ("counter", "I8", 4),
        ("complex", "C64", 16),
        ("small", "F8_E5M2", 2),
        ("tiny", "F4", 1),
        ("backbone.layers.0.mixer.mask", "BOOL", 2),
    ] {
        let shape = match dtype {
            "C64" => 2,
            "F4" => 2,
            _ => bytes,
        };
        about[name] = json!({"dtype": dtype, "shape": [shape], "data_offsets": [end, end + bytes]});
        data.extend(vec![1; bytes]);
        end += bytes;
    }
    about["mask"] = json!({"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]});
    data.extend([f32::NEG_INFINITY, f32::NAN].iter().flat_map(|value| value.to_le_bytes()));
    let write = |folder: &Folder, about: &serde_json::Value| {
        let about = about.to_string();
        let file = [&(about.len() as u64).to_le_bytes()[..], about.as_bytes(), &data].concat();
        folder.write("model.safetensors", file);
    };
    let folder = folder();
    write(&folder, &about);
    let model = folder.load();
    assert!(logits(&model) == expected);
    let unused = ["backbone.layers.0.mixer.mask", "complex", "counter", "mask", "seen", "small", "tiny"];
    assert_eq!(model.unused, unused);
    // What is needed must be of numbers that can be used.
    let name = "backbone.layers.1.mixer.D";
    about[name]["dtype"] = json!("I32");
    write(&folder, &about);
    let told = sentence(&folder);
    for part in
        ["model.safetensors: ", name, "expected floating-point numbers, found I32; save it again in f32"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    let mut file = File::new(2);
    let storage = file.storage("CharStorage", 8, vec![1; 8]);
    let item = [(name, file.view(&storage, 0, &[8], &[1]))];
    let mut others = tensors();
    others.remove(name);
    let weights = [file.weights(&others, &[]), b"(".to_vec(), file.dict(&item)[2..].to_vec()].concat();
    std::fs::remove_file(folder.at("model.safetensors")).unwrap();
    file.save(&folder.at("pytorch_model.bin"), &weights);
    let told = sentence(&folder);
    assert!(
        told.contains(&format!(
            "pytorch_model.bin: {name}: expected floating-point numbers, found torch.CharStorage"
        )),
        "{told}"
    );
}

#[test]
fn a_head_that_differs_from_the_embedding_is_kept() {
    let mut with_head = tensors();
    let embedding = with_head["backbone.embeddings.weight"].clone();
    with_head.insert("lm_head.weight".to_string(), embedding.affine(-0.5, 0.01).unwrap());
    let folder = Folder::checkpoint(&with_head, Some(&config()));
    let model = folder.load();
    let mut untied = Model::load(FIXTURE).unwrap().config;
    let Config::Mamba2(shape) = &mut untied else { panic!("{untied:?}") };
    shape.tie_word_embeddings = false;
    let expected = Model::from_tensors("x", untied.clone(), with_head.clone(), &Loading::default()).unwrap();
    assert!(model.config == untied && logits(&model) == logits(&expected) && model.unused.is_empty());
    let note = "the head is lm_head.weight, which differs from the embedding it is said to be";
    assert_eq!(model.assumed, [note]);
    let out = Folder::new();
    model.save(out.path()).unwrap();
    assert!(logits(&out.load()) == logits(&expected));
    let to = out.at("w8").to_string_lossy().into_owned();
    let source = folder.path().to_string_lossy().into_owned();
    let quantized = lowbit().args(["quantize", &source, "--scheme", "w8", "--out", &to]).output().unwrap();
    assert!(quantized.status.success(), "{}", String::from_utf8_lossy(&quantized.stderr));
    assert_eq!(Model::load(&to).unwrap().config, untied);
    // The same numbers under both names are one matrix.
    with_head.insert("lm_head.weight".to_string(), embedding);
    let same = Folder::checkpoint(&with_head, Some(&config())).load();
    assert!(same.config.tied().is_some() && same.assumed.is_empty());
    assert_eq!(same.unused, ["lm_head.weight"]);
    // A head that is called for and not there is not made up.
    let told = sentence(&Folder::with_setting("tie_word_embeddings", json!(false)));
    assert!(
        told.contains("lacks lm_head.weight") && told.contains("set tie_word_embeddings to true"),
        "{told}"
    );
}

#[test]
fn a_file_without_its_last_layers_is_no_shallower_model() {
    let fewer: Tensors = tensors().into_iter().filter(|(name, _)| !name.contains("layers.1.")).collect();
    let with = |metadata: &[(&str, &str)]| {
        let folder = Folder::new();
        let metadata = metadata.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
        save_safetensors(&folder.at("model.safetensors"), &fewer, &metadata).unwrap();
        folder
    };
    assert_eq!(with(&[]).load().config.layers(), 1);
    assert!(
        sentence(&with(&[("n_layer", "2")]))
            .contains("model.safetensors: n_layer is 2, and the checkpoint has 1")
    );
    assert!(
        sentence(&with(&[("config", "{\"num_hidden_layers\": 2}")]))
            .contains("config.num_hidden_layers is 2")
    );
    let folder = with(&[]);
    let map: BTreeMap<String, &str> = tensors().into_keys().map(|name| (name, "model.safetensors")).collect();
    folder.write("model.safetensors.index.json", json!({"weight_map": map}).to_string());
    assert!(sentence(&folder).contains("missing, though model.safetensors.index.json lists it"));
    let mut file = File::new(4);
    let weights = file.weights(&fewer, &[]);
    let settings = file.subclass(&[("n_layers", int(2)), ("name", b"N".to_vec())]);
    let folder = Folder::new();
    file.save(&folder.at("last.pt"), &file.dict(&[("model", weights), ("config", settings)]));
    assert!(sentence(&folder).contains("last.pt: config.n_layers is 2, and the checkpoint has 1"));
    // One shard of several, and a layer whose number is out of reach.
    let folder = Folder::new();
    save_safetensors(&folder.at("m-00001-of-00002.safetensors"), &fewer, &BTreeMap::new()).unwrap();
    assert!(sentence(&folder).contains("shard 2 of 2 of m is missing"));
    let path = folder.text("m-00001-of-00002.safetensors");
    assert!(refused(&["info", &path]).1.contains("this is one shard of 2; give its folder"));
    let far = renamed(&fewer, |name| name.replace("layers.0.norm", "layers.4000000000000000000.norm"));
    assert!(sentence(&Folder::checkpoint(&far, None)).contains("most of those before it are missing"));
}

#[test]
fn no_cast_makes_a_weight_infinite() {
    let out = "backbone.layers.1.mixer.out_proj.weight";
    let with = |name: &str, value: f64, dtype: DType| {
        Folder::with_tensor(name, |tensor| {
            let mut values: Vec<f64> =
                tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            values[3] = value;
            Tensor::from_vec(values, tensor.dims(), tensor.device()).unwrap().to_dtype(dtype).unwrap()
        })
    };
    for (name, value, dtype, to) in [
        (out, 1e300, DType::F64, "f32"),
        (out, 1e300, DType::F64, "bf16"),
        (out, 3.4e38, DType::F32, "bf16"),
        (out, 1e5, DType::BF16, "f16"),
        (out, 1e5, DType::F32, "f16"),
        ("backbone.norm_f.weight", 1e39, DType::F64, "bf16"),
    ] {
        let folder = with(name, value, dtype);
        let (code, told) = refused(&["info", &folder.path().to_string_lossy(), "--dtype", to]);
        let to = if name == out { to } else { "f32" };
        assert!(code == 2 && told.contains(&format!("{name}: a weight is too large for {to};")), "{told}");
    }
    let model = with(out, 3.4e38, DType::F32).load();
    assert!(model.cast(DType::BF16).unwrap_err().to_string().contains("too large for bf16; ask for f32"));
}

#[test]
fn marks_and_capitals_of_windows_do_not_matter() {
    let expected = logits(&Model::load(FIXTURE).unwrap());
    let folder = Folder::new();
    folder.write("CONFIG.JSON", format!("\u{feff}{}", config()));
    save_safetensors(&folder.at("MODEL.SAFETENSORS"), &tensors(), &BTreeMap::new()).unwrap();
    assert!(logits(&folder.load()) == expected);
    assert!(logits(&Model::load(&folder.text("MODEL.SAFETENSORS")).unwrap()) == expected);
    std::fs::remove_file(folder.at("MODEL.SAFETENSORS")).unwrap();
    super::pickled::save(&folder.at("Best.PT"), &tensors(), &[]);
    assert!(logits(&folder.load()) == expected);
}
