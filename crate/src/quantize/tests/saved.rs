//! Quantized models in files.

use super::*;

#[test]
fn a_saved_model_gives_the_same_logits() {
    let folder = tempfile::tempdir().unwrap();
    let how = calibration(&folder);
    let names = [
        "w4a8-g32-rot-gptq",
        "nf4dq",
        "u4a8-g32+dt=w8+head=w8",
        "mxfp4",
        "nvfp4",
        "fp8",
        "ternary",
        "w5a8-h8ef-bf16",
        "w5a8-h4ef8",
        "w4a16-mix60000B",
        "w4a4-rot-gptqseq",
        "w4a8-g32+x=keep",
        "nf4",
        "w8a8-static",
    ];
    for name in names {
        let made = quantized(name, &how);
        let path = folder.path().join(name);
        made.save(&path).unwrap();
        let loaded = Model::load(path.to_str().unwrap()).unwrap();
        assert_eq!(logits(&loaded), logits(&made), "{name}");
        assert_eq!(loaded.quantization, made.quantization, "{name}");
        assert_eq!(loaded.bytes(), made.bytes());
        // The claimed bytes are those of the file, beside its header.
        let file = std::fs::read(path.join("model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(file.len() - header, made.bytes(), "{name}");
    }
}

#[test]
fn a_lossless_model_is_the_same_in_fewer_bytes() {
    let config = crate::family::mamba2::Config {
        num_hidden_layers: 2,
        hidden_size: 128,
        num_heads: 4,
        ..Default::default()
    };
    let config = crate::family::Config::Mamba2(config);
    let model = Model::random("even", config, 3, &Loading::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (plain, lossless, most) in [("f32", "f32-lossless", 28.4), ("bf16", "bf16-lossless", 12.4)] {
        let of = |name: &str| model.quantized(&name.parse().unwrap()).unwrap();
        let (plain, made) = (of(plain), of(lossless));
        assert!(logits(&plain) == logits(&made), "{lossless}");
        assert_eq!(
            made.continue_greedily(&[1, 2, 3], 20).unwrap(),
            plain.continue_greedily(&[1, 2, 3], 20).unwrap()
        );
        let report = made.quantization.as_ref().unwrap();
        let bits = report.bits_per_weight();
        assert!(bits > most - 0.4 && bits < most && made.bytes() < plain.bytes(), "{lossless}: {bits} bits");
        assert_eq!((report.head().as_deref(), report.method.as_str()), (Some("lossless"), "exponents coded"));
        made.save(&folder.path().join(lossless)).unwrap();
        let file = std::fs::read(folder.path().join(lossless).join("model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(file.len() - header, made.bytes(), "{lossless}");
        let loaded = Model::load(folder.path().join(lossless).to_str().unwrap()).unwrap();
        assert!(logits(&loaded) == logits(&made) && loaded.bytes() == made.bytes());
        assert_eq!((&loaded.quantization, loaded.dtype), (&made.quantization, made.dtype));
    }
    // What is not quantized: here the head.
    let mixed = model.quantized(&"w4a16-lossless".parse().unwrap()).unwrap();
    let plain = model.quantized(&Scheme::w4a16()).unwrap();
    assert!(logits(&mixed) == logits(&plain) && mixed.bytes() < plain.bytes());
    // Rows too short to save anything stay as they are.
    let short = quantized("lossless", &Quantizing::default());
    assert_eq!(logits(&short), logits(&super::model()));
    let kinds: Vec<_> = short.quantization.unwrap().layers.iter().map(|l| l.blocks[0].format()).collect();
    assert_eq!(kinds[0], None);
    let refused = model.quantized(&"f16-lossless".parse().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("the exponents of f16") && refused.contains("bf16-lossless"), "{refused}");
}

#[test]
fn an_older_layout_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let made = quantized("w4a16", &Quantizing::default());
    made.save(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let found = bytes.windows(20).position(|w| w == b"\"lowbit_layout\":\"1\",").unwrap();
    let mut older = bytes.clone();
    older[found + 17] = b'0';
    std::fs::write(&path, older).unwrap();
    let error = Model::load(folder.path().to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("have layout 0") && error.contains("this version reads 1"), "{error}");

    let simulated = quantized("w4a16", &Quantizing { backend: Backend::Fake, ..Quantizing::default() });
    assert!(simulated.save(folder.path()).unwrap_err().to_string().contains("simulated"));
}
