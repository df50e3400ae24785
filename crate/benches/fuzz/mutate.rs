//! What may happen to a file: bits that flip, bytes that are lost, doubled or moved, and numbers that become others.

use rand::{Rng, RngExt};

/// Numbers at the edges, in JSON and YAML, and what stands where a number should.
const NUMBERS: [&str; 22] = [
    "0",
    "1",
    "2",
    "3",
    "-1",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "9007199254740993",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "1e999",
    "0.5",
    "NaN",
    "Infinity",
    "null",
    "true",
    "\"x\"",
    "[]",
    "{}",
];

/// Damages bytes in one to three places.
pub fn bytes(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=3) {
        once(bytes, rng);
    }
}

fn once(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    if bytes.is_empty() {
        return bytes.push(rng.random());
    }
    let at = place(bytes.len(), rng);
    let some = (1 + place(64, rng)).min(bytes.len() - at);
    match rng.random_range(0..9) {
        0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
        2 => bytes[at] = rng.random(),
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..at + some)),
        5 => {
            let copy = bytes[at..at + some].to_vec();
            let to = place(bytes.len(), rng);
            bytes.splice(to..to, copy);
        }
        6 => {
            let copy = bytes[at..at + some].to_vec();
            let to = place(bytes.len() - some + 1, rng);
            bytes[to..to + some].copy_from_slice(&copy);
        }
        7 => {
            // A little-endian number at an edge.
            let edge = [
                0,
                1,
                0x7f,
                0xff,
                0x7fff,
                0xffff,
                i32::MAX as u64,
                u64::from(u32::MAX),
                i64::MAX as u64,
                u64::MAX,
            ];
            let width = some.min([1, 2, 4, 8][rng.random_range(0..4)]);
            let number = edge[rng.random_range(0..edge.len())].to_le_bytes();
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        _ => {
            let fill = vec![bytes[at]; rng.random_range(1..200)];
            bytes.splice(at..at, fill);
        }
    }
}

/// A place, near the beginning as often as anywhere: headers are there.
fn place(len: usize, rng: &mut impl Rng) -> usize {
    let near = if rng.random() { len } else { len.min(400) };
    rng.random_range(0..near)
}

/// Damages text of numbers and names: a number becomes another, a key another key's, or bytes are damaged.
pub fn text(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=3) {
        match rng.random_range(0..6) {
            0..=2 => number(bytes, rng),
            3 => word(bytes, rng),
            4 => nest(bytes, rng),
            _ => once(bytes, rng),
        }
    }
}

fn number(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let is_digit = |byte: u8| byte.is_ascii_digit() || b".-".contains(&byte);
    let starts: Vec<usize> =
        (0..bytes.len()).filter(|&i| is_digit(bytes[i]) && (i == 0 || !is_digit(bytes[i - 1]))).collect();
    if starts.is_empty() {
        return once(bytes, rng);
    }
    let start = starts[rng.random_range(0..starts.len())];
    let end = (start..bytes.len()).find(|&i| !is_digit(bytes[i])).unwrap_or(bytes.len());
    let other = match rng.random_range(0..3) {
        0 => rng.random_range(0..300u32).to_string(),
        _ => NUMBERS[rng.random_range(0..NUMBERS.len())].to_string(),
    };
    bytes.splice(start..end, other.into_bytes());
}

/// Puts one quoted word in the place of another.
fn word(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let quotes: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] == b'"').collect();
    if quotes.len() < 4 {
        return once(bytes, rng);
    }
    let mut pair = || {
        let i = rng.random_range(0..quotes.len() / 2) * 2;
        quotes[i]..quotes[i + 1] + 1
    };
    let (from, to) = (pair(), pair());
    let copy = bytes[from].to_vec();
    bytes.splice(to, copy);
}

/// Brackets in brackets.
fn nest(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let at = rng.random_range(0..=bytes.len());
    let depth = [3, 100, 200, 5000][rng.random_range(0..4)];
    let pair = [(b'[', b']'), (b'{', b'}'), (b'(', b')')][rng.random_range(0..3)];
    let close = if rng.random() { depth } else { 0 };
    let nested = [vec![pair.0; depth], vec![pair.1; close]].concat();
    bytes.splice(at..at, nested);
}

/// Damages the opcodes of a pickle: some are put in, doubled, moved or made others, beside what befalls bytes.
pub fn pickle(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    const OPCODES: &[u8] = b"(.012FIJKLMNPQRSTUVXabcd}eghijlopqrs)tu]G\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8bBC\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98";
    for _ in 0..rng.random_range(1..=2) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..4) {
            0 => {
                let many = if rng.random_range(0..10) == 0 { 3000 } else { rng.random_range(1..6) };
                let one = OPCODES[rng.random_range(0..OPCODES.len())];
                let some = (0..many)
                    .map(|_| if many > 6 { one } else { OPCODES[rng.random_range(0..OPCODES.len())] });
                bytes.splice(at..at, some.collect::<Vec<u8>>());
            }
            1 if at < bytes.len() => bytes[at] = OPCODES[rng.random_range(0..OPCODES.len())],
            _ => once(bytes, rng),
        }
    }
}
