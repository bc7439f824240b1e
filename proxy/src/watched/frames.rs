//! Finds the frames in one direction of HTTP/2 (RFC 9113, section 4.1) as bytes pass, however they are cut.
//!
//! It judges nothing: what breaks the protocol is found by `h2`, which ends the connection.

/// What was passed so far.
#[derive(Debug)]
pub(super) struct Frames {
    /// The header of the current frame, and the first bytes of its payload where they are looked at.
    begin: [u8; HEADER + LOOKED_AT],
    filled: usize,
    wanted: usize,
    /// Bytes of the preface or of a payload that are still to come, and are not looked at.
    skip: usize,
    /// Whether the current frame is part of a header block, and whether it is the last of it.
    block: bool,
    last: bool,
    /// How many header blocks were begun.
    blocks: u64,
    /// The code of the last GOAWAY: an end in order says it twice.
    gone: Option<u32>,
}

/// What one end tells the other, with the code of the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// A stream is ended.
    Reset(u32),
    /// The connection is.
    GoAway(u32),
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            begin: [0; HEADER + LOOKED_AT],
            filled: 0,
            wanted: HEADER,
            skip: 0,
            block: false,
            last: false,
            blocks: 0,
            gone: None,
        }
    }
}

impl Frames {
    /// Frames behind the client's preface.
    pub(super) fn after_preface() -> Self {
        Self { skip: PREFACE, ..Self::default() }
    }

    /// Whether a header block was begun and has not ended.
    pub(super) fn in_block(&self) -> bool {
        self.begins() || (self.block && (!self.last || self.skip > 0))
    }

    /// How many header blocks were begun.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks + u64::from(self.begins())
    }

    /// Whether the header that comes is known to begin a header block.
    fn begins(&self) -> bool {
        self.filled > KIND && self.begin.get(KIND) == Some(&HEADERS)
    }

    /// Takes note of the next bytes.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Told)) {
        while !bytes.is_empty() {
            if self.filled == 0 {
                // The rest of a payload comes before the next header.
                let (skipped, rest) = bytes.split_at(self.skip.min(bytes.len()));
                self.skip -= skipped.len();
                bytes = rest;
                // Most headers come whole, and of most frames that is all that is looked at.
                if let Some((header, rest)) = bytes.split_first_chunk()
                    && self.begun(header) == 0
                {
                    bytes = rest;
                    continue;
                }
            }
            let (now, rest) = bytes.split_at((self.wanted - self.filled).min(bytes.len()));
            bytes = rest;
            if let Some(place) = self.begin.get_mut(self.filled..self.filled + now.len()) {
                place.copy_from_slice(now);
                self.filled += now.len();
            }
            if self.filled == HEADER
                && let Some(header) = self.begin.first_chunk().copied()
            {
                self.wanted = HEADER + self.begun(&header);
            }
            if self.filled == self.wanted {
                self.told().into_iter().for_each(&mut tell);
                (self.filled, self.wanted) = (0, HEADER);
            }
        }
    }

    /// The header of a frame has passed. How much of its payload is to be looked at.
    fn begun(&mut self, header: &[u8; HEADER]) -> usize {
        let [a, b, c, kind, flags, ..] = *header;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        let looked_at = if matches!(kind, RST_STREAM | GOAWAY) { len.min(LOOKED_AT) } else { 0 };
        self.block = matches!(kind, HEADERS | CONTINUATION);
        self.last = flags & END_HEADERS != 0;
        self.blocks += u64::from(kind == HEADERS);
        self.skip = len - looked_at;
        looked_at
    }

    /// What the current frame tells. A payload that is too short for it is broken.
    fn told(&mut self) -> Option<Told> {
        let payload = self.begin.get(HEADER..self.wanted)?;
        match self.begin.get(KIND) {
            Some(&RST_STREAM) => Some(Told::Reset(code(payload.get(..4)?))),
            Some(&GOAWAY) => {
                let code = code(payload.get(4..8)?);
                (self.gone.replace(code) != Some(code)).then_some(Told::GoAway(code))
            }
            _ => None,
        }
    }
}

fn code(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |code, byte| code << 8 | u32::from(*byte))
}

/// The length of a frame's header, and where the type is in it.
const HEADER: usize = 9;
const KIND: usize = 3;

/// How much of a payload is looked at: GOAWAY has its code behind the last stream.
const LOOKED_AT: usize = 8;

/// The length of the client's preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &[0, 0, 0, 1], payload].concat()
    }

    fn go_away(code: u32) -> Vec<u8> {
        frame(GOAWAY, 0, &[&[0, 0, 0, 9], &code.to_be_bytes()[..], b"why"].concat())
    }

    #[test]
    fn however_it_is_cut_the_same_is_told() {
        let all = [
            vec![b'P'; PREFACE],
            frame(4, 0, &[]),
            frame(HEADERS, END_HEADERS, b"abc"),
            frame(RST_STREAM, 0, &[0, 0, 0, 8]),
            frame(0, 0, &[RST_STREAM; 1000]),
            go_away(0),
            go_away(0),
            frame(RST_STREAM, 0, &[0, 0, 1, 0]),
            go_away(11),
        ]
        .concat();
        for size in [1, 2, 3, 7, 9, 13, 100, all.len()] {
            let (mut frames, mut told) = (Frames::after_preface(), Vec::new());
            all.chunks(size).for_each(|piece| frames.pass(piece, |this| told.push(this)));
            let expected = [Told::Reset(8), Told::GoAway(0), Told::Reset(256), Told::GoAway(11)];
            assert_eq!((told.as_slice(), frames.blocks()), (&expected[..], 1), "in pieces of {size}");
        }
    }

    #[test]
    fn a_header_block_is_unfinished_from_its_type_to_its_last_byte() {
        let block = [
            frame(HEADERS, 0, b"abc"),
            frame(CONTINUATION, 0, b""),
            frame(CONTINUATION, END_HEADERS, b"d"),
            frame(HEADERS, END_HEADERS, b""),
        ]
        .concat();
        let ends = block.len() - HEADER;
        let mut frames = Frames::default();
        for (place, byte) in block.iter().enumerate() {
            frames.pass(&[*byte], |told| panic!("{told:?}"));
            let expected = if place < ends {
                (KIND..ends - 1).contains(&place)
            } else {
                (ends + KIND..block.len() - 1).contains(&place)
            };
            assert_eq!(frames.in_block(), expected, "after byte {place}");
        }
        assert_eq!(frames.blocks(), 2);
    }

    #[test]
    fn a_payload_that_is_too_short_tells_nothing() {
        let mut frames = Frames::default();
        frames.pass(&[frame(RST_STREAM, 0, b"ab"), frame(GOAWAY, 0, b"")].concat(), |told| panic!("{told:?}"));
        assert!(!frames.in_block());
    }
}
