//! Takes the rows of a COPY off a connection in large blocks, before the client library sees them.
//!
//! ```text
//!                         ┌── everything else ──▶ tokio-postgres (log-in, statements, errors)
//! socket ──▶ TLS ──▶ Tap ─┤
//!                         └── runs of CopyData ──▶ bounded channel ──▶ decoder
//! ```
//!
//! The library hands out one reference-counted buffer a row, through a channel, from reads of 8 KiB:
//! that costs more than decoding the row. The tap reads into one large buffer and, while it is
//! switched on, hands on whole runs of messages as they lie there. It knows of the protocol only that
//! a message is a tag and a length. Whoever does not take blocks stops the reading, and so the server.
//!
//! What waits is counted in bytes. A row that is larger than all that may wait travels alone: it is not
//! even read before the decoder has let go of those before it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures::channel::mpsc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::tls::{ChannelBinding, TlsStream};
use tokio_util::sync::PollSemaphore;

/// A read asks for this much: the largest block, and what a run of rows costs in memory.
pub(super) const BLOCK_BYTES: usize = 256 << 10;
/// Blocks that wait for the decoder: enough that neither side waits for the other's scheduling.
const BLOCKS_WAITING: usize = 4;
/// Bytes that wait for the decoder or are in its hands.
const ROOM_BYTES: usize = BLOCKS_WAITING * BLOCK_BYTES;
/// Tag and length.
const HEADER: usize = 5;
/// No message of ours is longer; a longer one means that we lost our place.
const MESSAGE_LIMIT: usize = 1 << 30;

const COPY_DATA: u8 = b'd';
const COPY_DONE: u8 = b'c';
const ERROR: u8 = b'E';

/// Whole CopyData messages with their headers. The room that they take is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Where rows go.
struct Rows {
    blocks: mpsc::Sender<Block>,
    room: PollSemaphore,
    /// Room that the row under way has already.
    granted: Option<OwnedSemaphorePermit>,
}

/// Switches the tap of a connection.
#[derive(Clone, Default)]
pub(crate) struct Switch(Arc<Mutex<Option<Rows>>>);

impl Switch {
    /// The rows of the next COPY come out here. The channel ends with the COPY, however that ends.
    pub(crate) fn open(&self) -> mpsc::Receiver<Block> {
        let (blocks, receiver) = mpsc::channel(BLOCKS_WAITING);
        let room = PollSemaphore::new(Arc::new(Semaphore::new(ROOM_BYTES)));
        let rows = Rows { blocks, room, granted: None };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(rows);
        receiver
    }

    fn take(&self) -> Option<Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Rows {
    /// Waits until so many bytes have room: of more than there is at all, until nothing else waits.
    fn poll_room(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
        if self.granted.is_none() {
            let bytes = u32::try_from(bytes.min(ROOM_BYTES)).expect("the room is counted in 32 bits");
            let granted = ready!(self.room.poll_acquire_many(cx, bytes));
            self.granted = Some(granted.ok_or_else(|| io::Error::other("the room is closed"))?);
        }
        Poll::Ready(Ok(()))
    }
}

/// A stream with a tap in it.
pub(crate) struct Tap<S> {
    inner: S,
    switch: Switch,
    buffer: BytesMut,
    /// Bytes of the current message that the library still has to get.
    passing: usize,
    /// Where rows go, between the first row of a COPY and its end.
    rows: Option<Rows>,
    /// A run of messages that waits for room in the channel.
    run: Option<Bytes>,
}

impl<S> Tap<S> {
    pub(crate) fn new(inner: S, switch: Switch) -> Self {
        Self { inner, switch, buffer: BytesMut::new(), passing: 0, rows: None, run: None }
    }

    /// Length of the message at the start of `bytes`, header included.
    fn message_len(bytes: &[u8]) -> io::Result<Option<usize>> {
        let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if !(4..MESSAGE_LIMIT).contains(&len) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message has an impossible length"));
        }
        Ok(Some(len + 1))
    }

    /// Length of the complete CopyData messages at the start of the buffer.
    fn run_len(&self) -> io::Result<usize> {
        let mut end = 0;
        while self.buffer.get(end) == Some(&COPY_DATA) {
            match Self::message_len(&self.buffer[end..])? {
                Some(len) if end + len <= self.buffer.len() => end += len,
                _ => break,
            }
        }
        Ok(end)
    }
}

impl<S: AsyncRead + Unpin> Tap<S> {
    /// Reads once into the buffer; false at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.buffer.capacity() - self.buffer.len() < BLOCK_BYTES / 4 {
            self.buffer.reserve(BLOCK_BYTES);
        }
        let read = std::pin::pin!(self.inner.read_buf(&mut self.buffer)).poll(cx);
        Poll::Ready(Ok(ready!(read)? > 0))
    }

    /// Hands a waiting run on.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.run.is_some() {
            let gone = || io::Error::new(io::ErrorKind::ConnectionAborted, "nobody reads the rows any more");
            let rows = self.rows.as_mut().ok_or_else(gone)?;
            ready!(rows.blocks.poll_ready(cx)).map_err(|_| gone())?;
            let bytes = self.run.as_ref().map_or(0, Bytes::len);
            ready!(rows.poll_room(cx, bytes))?;
            if let (Some(bytes), Some(room)) = (self.run.take(), rows.granted.take()) {
                rows.blocks.start_send(Block { bytes, _room: room }).map_err(|_| gone())?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            ready!(this.poll_send(cx))?;
            if this.passing > 0 && !this.buffer.is_empty() {
                let len = this.passing.min(this.buffer.len()).min(out.remaining());
                out.put_slice(&this.buffer[..len]);
                this.buffer.advance(len);
                this.passing -= len;
                return Poll::Ready(Ok(()));
            }
            if this.passing == 0
                && let Some(len) = Self::message_len(&this.buffer)?
            {
                let tag = this.buffer[0];
                if tag == COPY_DATA && this.rows.is_none() {
                    this.rows = this.switch.take();
                }
                if tag != COPY_DATA || this.rows.is_none() {
                    if tag == COPY_DONE || tag == ERROR {
                        // The COPY is over, or failed before its first row.
                        this.rows = None;
                        this.switch.take();
                    }
                    this.passing = len;
                    continue;
                }
                let run = this.run_len()?;
                if run > 0 {
                    this.run = Some(this.buffer.split_to(run).freeze());
                    continue;
                }
                // A row larger than the buffer: make room for all of it at once, and for a block behind it,
                // or the last read would double all of it.
                if len > ROOM_BYTES
                    && let Some(rows) = &mut this.rows
                {
                    ready!(rows.poll_room(cx, len))?;
                }
                this.buffer.reserve(len.saturating_sub(this.buffer.len()) + BLOCK_BYTES);
            }
            if !ready!(this.poll_fill(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Tap<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}
