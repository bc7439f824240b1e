//! A byte copy: a connection out for each connection in, which is pooled as far as the client keeps its own.

use anyhow::Result;
use tokio::io::copy_bidirectional_with_sizes;

use crate::stream::{Dial, Stream};

pub(crate) struct Copy {
    dial: Dial,
    buffer: usize,
}

impl Copy {
    pub(crate) fn new(dial: Dial, buffer: usize) -> Self {
        Self { dial, buffer }
    }

    pub(crate) async fn serve(&self, mut client: Stream) -> Result<()> {
        let mut upstream = self.dial.connect().await?;
        copy_bidirectional_with_sizes(&mut client, &mut upstream, self.buffer, self.buffer).await?;
        Ok(())
    }
}
