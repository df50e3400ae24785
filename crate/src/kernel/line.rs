//! A line of the caches.

/// What a cache holds together; loads of it never straddle two.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);
