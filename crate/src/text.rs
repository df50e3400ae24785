//! Text as files hold it: UTF-8, with or without the mark that some programs put before it.

use crate::error::{Error, Result};

/// The byte order mark as a character; it says how a file is encoded and is no part of its text.
pub const MARK: char = '\u{feff}';

/// The text of a file's bytes, without a byte order mark.
///
/// # Errors
/// The bytes are UTF-16 by their mark, or no UTF-8; the sentence gives the byte.
pub fn decode(bytes: Vec<u8>) -> Result<String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::input("UTF-16 text: the file begins with the byte order mark of UTF-16")
            .hint("save the file as UTF-8"));
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to();
        Error::input(format!("not UTF-8 text: the byte at offset {offset} starts no character"))
            .hint("convert the file to UTF-8")
    })?;
    if text.starts_with(MARK) {
        text.drain(..MARK.len_utf8());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_no_text() {
        assert_eq!(decode(b"\xef\xbb\xbfbe".to_vec()).unwrap(), "be");
        assert_eq!(decode(b"be\xef\xbb\xbf".to_vec()).unwrap(), "be\u{feff}");
        for utf16 in [b"\xff\xfeb\0", b"\xfe\xff\0b"] {
            assert!(decode(utf16.to_vec()).unwrap_err().to_string().contains("save the file as UTF-8"));
        }
        assert!(decode(b"good \xff".to_vec()).unwrap_err().to_string().contains("offset 5"));
    }
}
