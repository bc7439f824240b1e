//! A copy of a request that takes the short way, where a body passes as it came, with its framing.

use super::Dropped;
use super::duplicate::Duplicate;
use crate::guard::framing::head::Body as Framing;
use crate::http1::body::{Body, Found};

/// A copy of a request, until all of its body has passed.
pub(crate) struct Plain {
    /// Until it is sent or given up.
    copy: Option<Duplicate>,
    framing: Framing,
    body: Body,
}

impl Plain {
    /// `None` if there is no body to wait for; then it is sent.
    pub(super) fn new(copy: Duplicate, framing: Framing) -> Option<Self> {
        let body = Body::from(framing);
        if body.has_ended() {
            copy.send();
            return None;
        }
        Some(Self { copy: Some(copy), framing, body })
    }

    /// Copies the bytes that pass next. With the last of them it is sent.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while let Some(copy) = self.copy.as_mut().filter(|_| !bytes.is_empty()) {
            let mut whole = false;
            let (passed, taken) = match self.body.find(bytes) {
                Ok(Found::Data { before, len }) => {
                    (before + len, copy.take(bytes.get(before..before + len).unwrap_or_default()))
                }
                Ok(Found::Framing(passed)) => (passed, Ok(())),
                Ok(Found::End(passed, trailers)) => {
                    whole = true;
                    (passed, if trailers.is_empty() { Ok(()) } else { copy.take_trailers(&trailers) })
                }
                Ok(Found::More) => return,
                Err(_) => (0, Err(Dropped::Incomplete)),
            };
            bytes = bytes.get(passed..).unwrap_or_default();
            match taken {
                Err(why) => self.give_up(why),
                Ok(()) if whole || self.body.has_ended() => self.copy.take().into_iter().for_each(Duplicate::send),
                Ok(()) => {}
            }
        }
    }

    /// The body comes once more from its beginning, for the request goes again.
    pub(crate) fn restart(&mut self) {
        self.body = Body::from(self.framing);
        self.copy.iter_mut().for_each(Duplicate::restart);
    }

    fn give_up(&mut self, why: Dropped) {
        if let Some(copy) = self.copy.take() {
            copy.give_up(why);
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.give_up(Dropped::Incomplete);
    }
}
