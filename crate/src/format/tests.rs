//! The laws of every format, and NF4 and FP8 against numbers of the programs that define them.

mod products;

use super::*;
use crate::kernel::integer::IntegerRows;
use ::safetensors::SafeTensors;
use proptest::prelude::*;

fn integers() -> impl Strategy<Value = Format> {
    (2u8..=8, any::<bool>())
        .prop_map(|(bits, signed)| if signed { Format::Int(bits) } else { Format::Uint(bits) })
}

fn formats() -> impl Strategy<Value = Format> {
    prop_oneof![integers(), proptest::sample::select(Format::NAMED.to_vec())]
}

fn granularities(rows: usize, cols: usize) -> impl Strategy<Value = Granularity> {
    prop_oneof![
        Just(Granularity::Tensor),
        Just(Granularity::Row),
        (1..=cols).prop_map(Granularity::Group),
        (1..=rows * cols).prop_map(Granularity::Block),
    ]
}

/// Matrices of odd shapes, of large and small values, with zeros and rows of zeros among them.
fn matrices() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    let value = prop_oneof![6 => -1.0f32..1.0, 1 => Just(0.0f32), 1 => -30.0f32..30.0];
    (1usize..6, 1usize..40, -20i32..20).prop_flat_map(move |(rows, cols, exponent)| {
        let row =
            prop_oneof![5 => proptest::collection::vec(value.clone(), cols), 1 => Just(vec![0.0; cols])];
        proptest::collection::vec(row, rows).prop_map(move |values| {
            let unit = f32::powi(2.0, exponent);
            (rows, cols, values.concat().into_iter().map(|x| x * unit).collect())
        })
    })
}

fn codings() -> impl Strategy<Value = (Coding, usize, usize, Vec<f32>)> {
    (matrices(), formats(), prop_oneof![Just(Clip::Max), Just(Clip::Mse)]).prop_flat_map(
        |((rows, cols, values), format, clip)| {
            granularities(rows, cols).prop_map(move |granularity| {
                (Coding { granularity, clip, ..Coding::of(format) }, rows, cols, values.clone())
            })
        },
    )
}

proptest! {
    #[test]
    fn what_comes_back_is_the_nearest_level((coding, rows, cols, values) in codings()) {
        let encoded = coding.encode(&values, rows, cols).unwrap();
        let back = encoded.decode();
        let (levels, runs) = (coding.format.levels(), coding.granularity.runs(rows, cols));
        let mut codes = vec![0; cols];
        for (i, (x, y)) in values.iter().zip(&back).enumerate() {
            if i % cols == 0 {
                encoded.row_codes(i / cols, &mut codes);
            }
            let scale = encoded.scales.get(runs.of(i / cols, i % cols));
            if coding.format == Format::Nf4Double {
                // Its codes are the nearest for other scales than those that are stored.
                prop_assert!(*x != 0.0 || *y == 0.0);
                continue;
            }
            if scale.scale == 0.0 {
                prop_assert_eq!(*y, 0.0);
                continue;
            }
            // NaN is no level; E4M3's largest code would be one.
            let usable = levels.iter().filter(|l| l.abs() <= coding.format.top().max(1.0) && !matches!(
                (coding.format, **l), (Format::Int(bits), l) if l < -int::top(bits)) && !matches!(
                (coding.format, **l), (Format::Ternary, l) if l < -1.0));
            // Nearest to the quotient as f32 has it, and to that without any slack, but for NF4, whose thresholds are
            // rounded.
            let distance = |level: f32| (f64::from(x / scale.scale) - f64::from(level - scale.zero)).abs();
            let nearest = usable.map(|l| distance(*l)).fold(f64::INFINITY, f64::min);
            let slack = if coding.format == Format::Nf4 { f64::from(f32::EPSILON) } else { 0.0 };
            let (level, found) = (coding.format.level(codes[i % cols]), distance(coding.format.level(codes[i % cols])));
            prop_assert!(found <= nearest + slack, "{coding}: {x} became {level} · scale, {nearest} is possible");
            prop_assert_eq!(*y, (level - scale.zero) * scale.scale);
            if *x == 0.0 {
                prop_assert_eq!(*y, 0.0, "{} does not keep zero", coding);
            }
        }
    }

    #[test]
    fn without_clipping_the_error_is_half_a_step((rows, cols, values) in matrices(), format in integers()) {
        let coding = Coding::of(format);
        let encoded = coding.encode(&values, rows, cols).unwrap();
        for (i, (x, y)) in values.iter().zip(encoded.decode()).enumerate() {
            let scale = encoded.scales.get(i / cols).scale;
            // A scale in bf16 may fall short of the ideal by one part in 512: so much of the top may be clipped.
            let clipped = if matches!(format, Format::Int(_)) { format.top() / 512.0 } else { 0.02 };
            let bound = scale * (0.501 + clipped) + f32::MIN_POSITIVE;
            prop_assert!((x - y).abs() <= bound, "{coding}: {x} became {y} at scale {scale}");
        }
    }

    #[test]
    fn quantizing_again_changes_nothing((coding, rows, cols, values) in codings()) {
        // The second level of NF4 rounds the scales: twice rounded is not once rounded.
        prop_assume!(coding.format != Format::Nf4Double);
        let once = coding.encode(&values, rows, cols).unwrap().decode();
        let again = coding.encode(&once, rows, cols).unwrap().decode();
        prop_assert_eq!(once, again, "{}", coding);
    }

    #[test]
    fn order_is_kept(format in formats(), mut values in proptest::collection::vec(-3.0f32..3.0, 2..80)) {
        values.sort_by(f32::total_cmp);
        let coding = Coding::of(format).shared_by(Granularity::Tensor);
        let back = coding.encode(&values, 1, values.len()).unwrap().decode();
        prop_assert!(back.windows(2).all(|pair| pair[0] <= pair[1]), "{coding}: {back:?}");
    }

    #[test]
    fn packing_loses_nothing(format in formats(), seed in any::<u64>(), count in 0usize..70, first in 0usize..70) {
        let code = |i: usize| {
            let any = (seed.rotate_left(i as u32 * 7) ^ i as u64) as u8 & (u8::MAX >> (8 - format.width()));
            if format == Format::Ternary { [0, 1, 3][usize::from(any) % 3] } else { any }
        };
        let codes: Vec<u8> = (0..count).map(code).collect();
        let mut packed = vec![0; pack::bytes(format, count)];
        pack::pack(format, &codes, &mut packed);
        let first = first.min(count);
        let mut back = vec![0; count - first];
        pack::unpack(format, &packed, first, &mut back);
        prop_assert_eq!(&back, &codes[first..]);
    }

    #[test]
    fn the_claimed_bytes_are_the_bytes((coding, rows, cols, values) in codings()) {
        let encoded = coding.encode(&values, rows, cols).unwrap();
        let scales = match &encoded.scales {
            Scales::Bf16(scales) => 2 * scales.len(),
            Scales::Affine(scales, zeros) => 4 * scales.len() + zeros.len(),
            Scales::F32(scales) => 4 * scales.len(),
            Scales::F16(scales, mins) => 2 * scales.len() + mins.as_ref().map_or(0, |mins| 2 * mins.len()),
            Scales::Double { codes, absmax, .. } => codes.len() + 4 * absmax.len() + 4,
            Scales::Power(codes) => codes.len(),
            Scales::Fp8 { codes, .. } => codes.len() + 4,
        };
        prop_assert_eq!(encoded.bytes(), encoded.codes().len() + scales);
        prop_assert_eq!(coding.to_string().parse::<Coding>().unwrap(), coding);
    }

    #[test]
    fn integers_of_a_row_are_its_levels((rows, cols, values) in matrices(), format in integers()) {
        let encoded = Coding::of(format).encode(&values, rows, cols).unwrap();
        let (mut integers, mut back) = (vec![0; cols], vec![0.0; cols]);
        for row in 0..rows {
            encoded.integers(row, &mut integers);
            encoded.decode_rows(row, &mut back);
            let mut runs = vec![];
            encoded.runs(row, &mut runs);
            let scale = runs[0];
            for (integer, value) in integers.iter().zip(&back) {
                prop_assert_eq!((f32::from(*integer) - scale.zero) * scale.scale, *value);
            }
        }
    }

    #[test]
    fn clipping_never_makes_the_error_larger((rows, cols, values) in matrices(), format in integers()) {
        let error = |clip| -> f64 {
            let coding = Coding { clip, ..Coding::of(format) };
            let back = coding.encode(&values, rows, cols).unwrap().decode();
            values.iter().zip(back).map(|(x, y)| f64::from(x - y).powi(2)).sum()
        };
        prop_assert!(error(Clip::Mse) <= error(Clip::Max) * (1.0 + 1e-6));
    }
}

#[test]
fn bits_a_weight_are_known_before() {
    for (name, bits) in [("w4-g64", 4.25), ("w8", 8.0 + 16.0 / 1024.0), ("nf4", 4.5), ("mxfp4", 4.25)] {
        let coding: Coding = name.parse().unwrap();
        assert_eq!(8.0 * coding.bytes(512, 1024) as f64 / (512.0 * 1024.0), bits, "{name}");
    }
    let double: Coding = "nf4dq".parse().unwrap();
    let bits = 8.0 * double.bytes(512, 1024) as f64 / (512.0 * 1024.0);
    assert!((bits - 4.127).abs() < 1e-3, "{bits}");
}

#[test]
fn what_cannot_be_encoded_is_refused() {
    let error =
        |coding: Coding, values: &[f32]| coding.encode(values, 1, values.len()).unwrap_err().to_string();
    let w4 = Coding::of(Format::Int(4));
    assert!(error(w4, &[1.0, f32::NAN, f32::INFINITY]).contains("2 of 3 weights are NaN or infinite"));
    let group = error(w4.shared_by(Granularity::Group(64)), &[1.0, 2.0]);
    assert!(group.contains("groups of 64 are larger than the row of 2"), "{group}");
    assert!(error(w4.shared_by(Granularity::Group(0)), &[1.0]).contains("at least one value"));
    assert!(error(Coding::of(Format::Int(9)), &[1.0]).contains("integers of 9 bits"));
}

/// Numbers of bitsandbytes and torch; see `crate/tests/fixtures`.
struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/numerics/numerics.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    fn bytes(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        (view.shape().to_vec(), view.data().to_vec())
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, bytes) = self.bytes(name);
        (shape, bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect())
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(found: &[T], expected: &[T], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "{what}, number {i}");
    }
}

/// The values as bitsandbytes decodes them on a CPU. With 96 columns it takes whole blocks of 64 for the pitch of a row
/// and so the scales of other blocks than those that it encoded with; everywhere else it is `decode`.
fn as_decoded_there(encoded: &Encoded, scales: &[f32]) -> Vec<f32> {
    if encoded.cols != 96 {
        return encoded.decode();
    }
    let mut codes = vec![0; encoded.cols];
    let rows = (0..encoded.rows).flat_map(|row| {
        encoded.row_codes(row, &mut codes);
        let value = |(col, code): (usize, &u8)| nf4::LEVELS[usize::from(*code)] * scales[row + col / 64];
        codes.iter().enumerate().map(value).collect::<Vec<_>>()
    });
    rows.collect()
}

#[test]
fn nf4_is_that_of_bitsandbytes() {
    let fixture = Fixture::open();
    assert_eq!(fixture.floats("nf4.code").1, nf4::LEVELS);
    for case in ["nf4_a", "nf4_b", "nf4_c"] {
        let (shape, weight) = fixture.floats(&format!("{case}.weight"));
        let floats = |name: &str| fixture.floats(&format!("{case}_{name}")).1;
        let bytes = |name: &str| fixture.bytes(&format!("{case}_{name}")).1;
        let plain = Coding::of(Format::Nf4).encode(&weight, shape[0], shape[1]).unwrap();
        equal(&plain.codes(), &bytes("plain.packed"), "codes");
        assert_eq!(plain.scales, Scales::F32(floats("plain.absmax")), "{case}");
        equal(&as_decoded_there(&plain, &floats("plain.absmax")), &floats("plain.dequant"), "values");

        let double = Coding::of(Format::Nf4Double).encode(&weight, shape[0], shape[1]).unwrap();
        let Scales::Double { codes, absmax, offset, map } = &double.scales else { panic!("no second level") };
        equal(&map[..], &floats("dq.code2"), "map");
        assert_eq!(*offset, floats("dq.offset")[0], "{case}");
        equal(absmax, &floats("dq.absmax2"), "second scales");
        equal(codes, &bytes("dq.absmax_q"), "codes of the scales");
        equal(&double.codes(), &bytes("dq.packed"), "codes, double");
        let scales: Vec<f32> = (0..double.scales.len()).map(|i| double.scales.get(i).scale).collect();
        equal(&as_decoded_there(&double, &scales), &floats("dq.dequant"), "values, double");
    }
}

#[test]
fn fp8_is_that_of_torch() {
    let fixture = Fixture::open();
    let (input, expected) = (fixture.floats("fp8.input").1, fixture.floats("fp8.e4m3_saturated").1);
    for (x, expected) in input.into_iter().zip(expected) {
        let found = minifloat::E4M3.round(x);
        assert_eq!(found, expected, "{x}");
        assert_eq!(found.is_sign_negative(), expected.is_sign_negative(), "{x}");
    }
    let fp4: Vec<f32> = (0..8).map(|code| minifloat::E2M1.value(code)).collect();
    assert_eq!(fp4, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
    for (x, expected) in
        [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0), (-9.0, -6.0)]
    {
        assert_eq!(minifloat::E2M1.round(x), expected, "{x}");
    }
}

/// Every value against all numbers of the format: the nearest, of two as near the even code, no slack.
#[test]
fn minifloats_are_the_nearest_of_all_their_numbers() {
    for (format, count) in [(minifloat::E4M3, 256u16), (minifloat::E2M1, 16)] {
        // E4M3 leaves two patterns for NaN.
        let numbers: Vec<(u8, f32)> = (0..count)
            .map(|code| (code as u8, format.value(code as u8)))
            .filter(|(_, value)| value.abs() <= format.max)
            .collect();
        assert_eq!(numbers.len(), if count == 256 { 254 } else { 16 });
        let nearest = |x: f32| {
            let distance = |value: f32| (f64::from(x) - f64::from(value)).abs();
            let alike = numbers.iter().filter(|(_, v)| v.is_sign_negative() == x.is_sign_negative());
            let order = |(a, v): &&(u8, f32), (b, w): &&(u8, f32)| {
                distance(*v).total_cmp(&distance(*w)).then((a % 2).cmp(&(b % 2)))
            };
            alike.min_by(order).unwrap().0
        };
        let positive: Vec<f32> = numbers[..numbers.len() / 2].iter().map(|(_, value)| *value).collect();
        let middles = positive.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
        let around = middles.chain(positive.iter().copied()).flat_map(|x| [x.next_down(), x, x.next_up()]);
        // And f32 of all sizes up to 2^40, beyond which differences round in f64.
        let all = (0..40_000u32).map(|i| f32::from_bits(i * 53_003)).filter(|x| *x < f32::powi(2.0, 40));
        let mut ties = 0;
        for x in around.chain(all).flat_map(|x| [x, -x]) {
            assert_eq!(format.code(x), nearest(x), "{x}");
            ties += usize::from(positive.windows(2).any(|pair| x == (pair[0] + pair[1]) / 2.0));
        }
        assert!(ties >= positive.len() - 1, "every middle is met");
        for x in [1e30, f32::MAX, f32::INFINITY] {
            assert_eq!((format.round(x), format.round(-x)), (format.max, -format.max));
        }
    }
}
