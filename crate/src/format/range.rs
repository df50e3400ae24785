//! Codes in what their entropy leaves: a range coder (Martin 1979), that of the library constriction, by how often each code comes in a
//! matrix.
//!
//! A general compressor looks for repetitions, of which the codes of a matrix have none, and gives each symbol a whole number of bits: it
//! took up to 10 % more where codes have few bits, and less where they have many. Numbers and places are integers, so that the same codes make the same words on every machine.

use crate::error::{Error, Result};
use constriction::stream::model::ContiguousCategoricalEntropyModel;
use constriction::stream::queue::{DefaultRangeDecoder, DefaultRangeEncoder};
use constriction::stream::{Decode, Encode};

/// Bits of the shares of symbols.
const PRECISION: usize = 16;

type Frequencies = ContiguousCategoricalEntropyModel<u16, Vec<u16>, PRECISION>;

/// By this code, in two's complement, become numbers whose neighbours are neighbours; those without sign stay so.
const MIDDLE: u8 = 0x80;

/// Codes, one a byte, as words: the least symbol and how many follow it, their shares two to a word, and what the coder gives.
///
/// # Errors
/// If there is no code.
pub fn encode(codes: &[u8]) -> Result<Vec<u32>> {
    let mut counts = [0u64; 256];
    codes.iter().for_each(|code| counts[usize::from(code ^ MIDDLE)] += 1);
    let seen = || counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(symbol, _)| symbol);
    let (Some(mut first), Some(mut last)) = (seen().next(), seen().next_back()) else {
        return Err(Error::internal("a matrix without codes"));
    };
    // The coder wants two symbols at least.
    match (first, last) {
        (255, 255) => first = 254,
        (one, same) if one == same => last = one + 1,
        _ => {}
    }
    let shares = shares(&counts[first..=last]);
    let mut words = vec![first as u32 | (shares.len() as u32) << 8];
    words.extend(shares.chunks(2).map(|pair| {
        let second = pair.get(1).copied().unwrap_or_default();
        u32::from(pair[0]) | u32::from(second) << 16
    }));
    let frequencies = model(&shares)?;
    let mut coder = DefaultRangeEncoder::new();
    let symbols = codes.iter().map(|code| usize::from(code ^ MIDDLE) - first);
    coder
        .encode_iid_symbols(symbols, &frequencies)
        .map_err(|error| Error::internal(format!("range coder: {error}")))?;
    words.extend(coder.into_compressed().unwrap_or_else(|never| match never {}));
    Ok(words)
}

/// The reverse of [`encode`], of so many codes.
///
/// # Errors
/// If the words are not those of so many codes.
pub fn decode(words: &[u32], count: usize) -> Result<Vec<u8>> {
    let damaged = || {
        Error::input(format!("{} words are not those of {count} range-coded codes", words.len()))
            .hint("the file is damaged or was written by another program")
    };
    let (head, rest) = words.split_first().ok_or_else(damaged)?;
    let (first, symbols) = ((head & 0xFF) as usize, (head >> 8) as usize);
    if symbols < 2 || first + symbols > 256 || rest.len() < symbols.div_ceil(2) {
        return Err(damaged());
    }
    let (table, compressed) = rest.split_at(symbols.div_ceil(2));
    let shares = table.iter().flat_map(|pair| [*pair as u16, (pair >> 16) as u16]).take(symbols);
    let frequencies = model(&shares.collect::<Vec<_>>()).map_err(|_| damaged())?;
    let mut coder = DefaultRangeDecoder::from_compressed(compressed.to_vec()).map_err(|_| damaged())?;
    let symbol = |symbol: std::result::Result<usize, _>| match symbol {
        Ok(symbol) => Ok((first + symbol) as u8 ^ MIDDLE),
        Err(_) => Err(damaged()),
    };
    let codes = coder.decode_iid_symbols(count, &frequencies).map(symbol).collect::<Result<Vec<u8>>>()?;
    match coder.maybe_exhausted() {
        true => Ok(codes),
        false => Err(damaged()),
    }
}

/// How often symbols come, as shares of 2^16, none of them 0.
fn shares(counts: &[u64]) -> Vec<u16> {
    let total: u64 = counts.iter().sum();
    let mut shares: Vec<i64> =
        counts.iter().map(|count| ((count << PRECISION) / total.max(1)).max(1) as i64).collect();
    // What rounding left over or took is the commonest symbol's, which has most to spare.
    let left = (1 << PRECISION) - shares.iter().sum::<i64>();
    if let Some(most) = shares.iter_mut().max() {
        *most += left;
    }
    shares.into_iter().map(|share| share.clamp(1, i64::from(u16::MAX)) as u16).collect()
}

fn model(shares: &[u16]) -> Result<Frequencies> {
    Frequencies::from_nonzero_fixed_point_probabilities(shares, false)
        .map_err(|()| Error::internal("shares that do not add up"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_take_what_their_entropy_leaves() {
        // Of a bell of ± 31, as rounded weights are.
        let bell = |i: u64| {
            let draws = (0..6).map(|k| (i * 6 + k).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58);
            (draws.sum::<u64>() as i64 / 3 - 63).clamp(-31, 31) as i8 as u8
        };
        let codes: Vec<u8> = (0..100_000).map(bell).collect();
        let mut counts = [0u64; 256];
        codes.iter().for_each(|code| counts[usize::from(*code)] += 1);
        let bits = |count: &u64| -(*count as f64) * (*count as f64 / codes.len() as f64).log2();
        let least = counts.iter().filter(|count| **count > 0).map(bits).sum::<f64>() / 8.0;
        let words = encode(&codes).unwrap();
        let bytes = 4.0 * words.len() as f64;
        assert!(bytes > least && bytes < 1.001 * least + 200.0, "{bytes} {least}");
        assert_eq!(decode(&words, codes.len()).unwrap(), codes);
        assert!(
            decode(&words, codes.len() + 9).is_err() || decode(&words, codes.len() + 9).unwrap() != codes
        );
        assert!(decode(&words[..1], 5).is_err() && decode(&[], 5).is_err());
        assert!(decode(&[0x10_FF, 1, 2], 5).is_err());
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(codes in proptest::collection::vec(any::<u8>(), 1..600), narrow in 0u8..8) {
            let codes: Vec<u8> = codes.into_iter().map(|code| (code as i8 >> narrow) as u8).collect();
            prop_assert_eq!(decode(&encode(&codes).unwrap(), codes.len()).unwrap(), codes);
        }

        #[test]
        fn damaged_words_do_not_panic(words in proptest::collection::vec(any::<u32>(), 0..40), count in 0usize..300) {
            let _ = decode(&words, count);
        }
    }
}
