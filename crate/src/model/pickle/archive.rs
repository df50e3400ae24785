//! The zip archive of `torch.save`: parts that are stored as they are, found by the directory at the file's end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

/// A part of the archive.
pub(super) struct Part {
    /// Its path in the archive.
    pub name: String,
    /// Where its bytes lie in the file; none if they are compressed or encrypted.
    pub bytes: Option<Range<u64>>,
    /// The CRC-32 of its bytes; 0 where the writer did not make one.
    pub crc: u32,
}

/// The record at the end of a zip file, without its comment.
const END: usize = 22;
/// The record that says where a zip64 file has its directory, and the one before the usual end that points to it.
const END64: usize = 56;
const LOCATOR: usize = 20;
/// What a directory has of each part, and what stands in front of its bytes, without names and extra fields.
const ENTRY: usize = 46;
const HEADER: usize = 30;

/// The parts of an archive of `len` bytes, in the order of their bytes.
///
/// # Errors
/// What is wrong, if it is not a whole archive.
pub(super) fn parts(file: &mut File, len: u64) -> Result<Vec<Part>, String> {
    let directory = directory(file, len)?;
    let listed = read(file, &directory)?;
    let (mut parts, mut rest) = (vec![], &listed[..]);
    while rest.starts_with(b"PK\x01\x02") {
        let cut = || "its directory is cut short".to_string();
        let entry = rest.get(..ENTRY).ok_or_else(cut)?;
        let [name, extra, comment] = [28, 30, 32].map(|at| u16_at(entry, at) as usize);
        let end = ENTRY + name + extra + comment;
        let fields = rest.get(ENTRY..end).ok_or_else(cut)?;
        let mut wide = wide(&fields[name..name + extra]);
        let mut number = |at: usize| match u32_at(entry, at) {
            u32::MAX => wide.next(),
            n => Some(u64::from(n)),
        };
        // Zip64 lists the wide numbers that are called for in this order.
        let sizes = (number(24), number(20), number(42));
        let (Some(size), Some(compressed), Some(header)) = sizes else { return Err(cut()) };
        let name = String::from_utf8_lossy(&fields[..name]).into_owned();
        let plain = u16_at(entry, 10) == 0 && u16_at(entry, 8) & 1 == 0 && size == compressed;
        let bytes = plain.then(|| stretch(file, header, size, directory.start)).transpose();
        let bytes = bytes.map_err(|what| format!("{what} {name}"))?;
        parts.push(Part { name, bytes, crc: u32_at(entry, 16) });
        rest = &rest[end..];
    }
    parts.sort_by_key(|part| part.bytes.as_ref().map(|bytes| (bytes.start, bytes.end)));
    let apart = |pair: &[Part]| match (&pair[0].bytes, &pair[1].bytes) {
        (Some(a), Some(b)) => a.end <= b.start,
        _ => true,
    };
    if !parts.windows(2).all(apart) {
        return Err("its parts overlap".to_string());
    }
    Ok(parts)
}

/// Where the directory lies.
fn directory(file: &mut File, len: u64) -> Result<Range<u64>, String> {
    let none = || "it is no zip archive, or its end is missing".to_string();
    // A comment of up to 65,535 bytes may follow the end record.
    let tail = read(file, &(len.saturating_sub((END + LOCATOR + 65_535) as u64)..len))?;
    let is_end = |at: &usize| tail[*at..].starts_with(b"PK\x05\x06");
    let end = (0..=tail.len().checked_sub(END).ok_or_else(none)?).rev().find(is_end).ok_or_else(none)?;
    let (mut size, mut start) = (u64::from(u32_at(&tail, end + 12)), u64::from(u32_at(&tail, end + 16)));
    if let Some(locator) = end.checked_sub(LOCATOR).filter(|at| tail[*at..].starts_with(b"PK\x06\x07")) {
        let at = u64_at(&tail, locator + 8);
        let record = read(file, &(at..at.checked_add(END64 as u64).ok_or_else(none)?))?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(none());
        }
        (size, start) = (u64_at(&record, 40), u64_at(&record, 48));
    }
    match start.checked_add(size) {
        Some(end) if end <= len => Ok(start..end),
        _ => Err("its directory lies beyond its end".to_string()),
    }
}

/// Where the bytes of a part lie whose header is at `header`; all parts lie before the directory.
fn stretch(file: &mut File, header: u64, size: u64, directory: u64) -> Result<Range<u64>, String> {
    let cut = || "it is cut short at".to_string();
    let after = header.checked_add(HEADER as u64).filter(|end| *end <= directory).ok_or_else(cut)?;
    let about = read(file, &(header..after))?;
    if !about.starts_with(b"PK\x03\x04") {
        return Err("its directory misses".to_string());
    }
    let start = after + u64::from(u16_at(&about, 26)) + u64::from(u16_at(&about, 28));
    let end = start.checked_add(size).filter(|end| *end <= directory).ok_or_else(cut)?;
    Ok(start..end)
}

/// The numbers of eight bytes among extra fields.
fn wide(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut numbers = vec![];
    while extra.len() >= 4 {
        let (id, size) = (u16_at(extra, 0), u16_at(extra, 2) as usize);
        let field = &extra[4..extra.len().min(4 + size)];
        if id == 1 {
            numbers.extend(field.chunks_exact(8).map(|number| u64_at(number, 0)));
        }
        extra = &extra[4 + field.len()..];
    }
    numbers.into_iter()
}

/// The bytes of a stretch, which must all be there.
pub(super) fn read(file: &mut File, stretch: &Range<u64>) -> Result<Vec<u8>, String> {
    let told = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "it is cut short".to_string(),
        _ => e.to_string(),
    };
    let len = file.metadata().map_err(told)?.len();
    if stretch.end > len || stretch.start > stretch.end {
        return Err("it is cut short".to_string());
    }
    let mut bytes = vec![0; (stretch.end - stretch.start) as usize];
    file.seek(SeekFrom::Start(stretch.start)).map_err(told)?;
    file.read_exact(&mut bytes).map_err(told)?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
