//! tonic's codec with buffers of the size that one participant needs.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Each call takes one for its request and one for its answer. tonic's default of 8 KiB is more than an allocator keeps at
/// hand; a larger message makes its buffer grow.
const BUFFER: usize = 1024;
/// tonic's own: a stream's answers are sent once so much is encoded.
const YIELD_THRESHOLD: usize = 32 * 1024;

/// What the generated service and client encode and decode by.
pub struct ParticipantCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ParticipantCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for ParticipantCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD_THRESHOLD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD_THRESHOLD))
    }
}
