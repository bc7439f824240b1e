//! The header lines of a head that are passed on: copied in as few pieces as there are lines left out between them.

use crate::buffer::Buffer;

/// Copies lines of one head.
pub(super) struct Lines<'a> {
    head: &'a [u8],
    /// Where what is to be copied and was not yet begins.
    from: usize,
}

impl<'a> Lines<'a> {
    /// All lines of `head`.
    pub(super) fn new(head: &'a [u8]) -> Self {
        Self { head, from: 0 }
    }

    /// The lines of `head` after the first, which ends before `first`.
    pub(super) fn after_first(head: &'a [u8], first: Option<&httparse::Header<'_>>, end: usize) -> Self {
        Self { head, from: first.map_or(end, |first| offset(head, first.name.as_bytes())) }
    }

    /// Leaves out the line of `header`, which `next` follows.
    pub(super) fn skip(
        &mut self,
        header: &httparse::Header<'_>,
        next: Option<&httparse::Header<'_>>,
        end: usize,
        out: &mut Buffer,
    ) {
        self.copy_to(offset(self.head, header.name.as_bytes()), out);
        self.from = next.map_or(end, |next| offset(self.head, next.name.as_bytes()));
    }

    /// Copies what is left up to `end`.
    pub(super) fn copy_to(&mut self, end: usize, out: &mut Buffer) {
        out.push(self.head.get(self.from..end).unwrap_or_default());
        self.from = end;
    }
}

/// Where `part` begins in `whole`, of which it is a part.
pub(super) fn offset(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize).min(whole.len())
}
