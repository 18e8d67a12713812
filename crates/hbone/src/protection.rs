//! Record protection of TLS 1.3 (RFC 8446, section 5): one direction's key, with which records are sealed and opened where
//! they lie. Owns the nonces and the record's form. Derives no keys and runs no handshake: rustls does.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved};

/// What precedes the sealed part of a record: type, version, length.
pub(crate) const HEAD: usize = 5;
/// The largest content of one record (section 5.1).
pub(crate) const CONTENT: usize = 16 * 1024;
/// What follows the content of a record of ours: its type and the tag.
pub(crate) const TAIL: usize = 1 + TAG;
/// The largest sealed part that a peer may send (section 5.2): padding may add to the content.
pub(crate) const SEALED: usize = CONTENT + 256;
/// All suites of TLS 1.3 that we know have tags of this length.
const TAG: usize = 16;

/// One direction of a session, until its next key update.
pub(crate) struct Protection {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Protection {
    /// From what rustls derived, to go on at this sequence number.
    pub(crate) fn new(secrets: &ConnectionTrafficSecrets, sequence: u64) -> Result<Protection, Error> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => {
                return Err(Error::General(
                    "the tunnel's cipher suite is not known to the record layer".into(),
                ));
            }
        };
        Protection::with(algorithm, key.as_ref(), iv.as_ref(), sequence)
            .ok_or_else(|| Error::General("rustls derived a key of another length than its suite has".into()))
    }

    fn with(algorithm: &'static Algorithm, key: &[u8], iv: &[u8], sequence: u64) -> Option<Protection> {
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
        Some(Protection { key, iv: iv.try_into().ok()?, sequence })
    }

    /// Records sealed or opened with this key so far.
    pub(crate) fn used(&self) -> u64 {
        self.sequence
    }

    /// Section 5.3. Every number is used once: at the last one the direction is over.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Seals a record where it lies: `HEAD` bytes of room, the content, `TAIL` bytes of room.
    pub(crate) fn seal(&mut self, kind: ContentType, record: &mut [u8]) -> Result<(), Error> {
        let (head, sealed) = record.split_at_mut(HEAD);
        let (inner, tag_room) = sealed.split_at_mut(sealed.len() - TAG);
        let length = u16::try_from(inner.len() + TAG).map_err(|_| Error::EncryptError)?.to_be_bytes();
        // On the wire every record looks like application data of TLS 1.2 (section 5.2).
        head.copy_from_slice(&[ContentType::ApplicationData.into(), 3, 3, length[0], length[1]]);
        inner[inner.len() - 1] = kind.into();
        let nonce = self.nonce()?;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(&*head), inner)
            .map_err(|_| Error::EncryptError)?;
        tag_room.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens a whole record where it lies. The content begins behind the head; answers its type and length.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(ContentType, usize), Error> {
        let (head, sealed) = record.split_at_mut(HEAD);
        let nonce = self.nonce()?;
        let inner =
            self.key.open_in_place(nonce, Aad::from(&*head), sealed).map_err(|_| Error::DecryptError)?;
        // The type is the last byte that is not padding (section 5.4).
        let Some(at) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into());
        };
        if at > CONTENT {
            return Err(Error::PeerSentOversizedRecord);
        }
        Ok((inner[at].into(), at))
    }
}

/// The length of the sealed part of the first record in `bytes`, once all of it is there.
pub(crate) fn whole(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let [kind, _, _, high, low, sealed @ ..] = bytes else { return Ok(None) };
    if ContentType::from(*kind) != ContentType::ApplicationData {
        return Err(InvalidMessage::UnexpectedMessage("an unprotected record after the handshake").into());
    }
    let length = usize::from(*high) << 8 | usize::from(*low);
    if length > SEALED {
        return Err(Error::PeerSentOversizedRecord);
    }
    Ok((sealed.len() >= length).then_some(length))
}

#[cfg(test)]
mod tests {
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn protection(sequence: u64) -> Protection {
        let secrets =
            ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv: Iv::from([9; 12]) };
        Protection::new(&secrets, sequence).unwrap()
    }

    fn record(content: &[u8]) -> Vec<u8> {
        [&[0; HEAD][..], content, &[0; TAIL]].concat()
    }

    fn padded(content: &[u8], kind: u8, padding: usize) -> Vec<u8> {
        let mut record = record(&[content, &[kind], &vec![0; padding]].concat());
        // `seal` writes a type of its own, behind the padding: none.
        protection(0).seal(ContentType::Unknown(0), &mut record).unwrap();
        record
    }

    /// RFC 8448, section 3: the record with which the server says close_notify, and its key, iv and number.
    #[test]
    fn a_record_of_rfc_8448_is_opened_and_made() {
        let key = bytes("9f 02 28 3b 6c 9c 07 ef c2 6b b9 f2 ac 92 e3 56");
        let iv = bytes("cf 78 2b 88 dd 83 54 9a ad f1 e9 84");
        let sealed = bytes("17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9");
        let mut opens = Protection::with(&AES_128_GCM, &key, &iv, 2).unwrap();
        let mut record = sealed.clone();
        assert_eq!(opens.open(&mut record).unwrap(), (ContentType::Alert, 2));
        assert_eq!(record[HEAD..HEAD + 2], [1, 0]);
        opens.sequence = 2;
        let mut made = self::record(&[1, 0]);
        opens.seal(ContentType::Alert, &mut made).unwrap();
        assert_eq!(made, sealed);
    }

    #[test]
    fn what_is_sealed_is_opened_once_and_in_order() {
        let (mut seals, mut opens) = (protection(5), protection(5));
        for length in [0, 1, 100, CONTENT] {
            let content: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut sealed = record(&content);
            seals.seal(ContentType::ApplicationData, &mut sealed).unwrap();
            assert_eq!(whole(&sealed).unwrap(), Some(sealed.len() - HEAD));
            assert_eq!(whole(&sealed[..sealed.len() - 1]).unwrap(), None);
            let replay = sealed.clone();
            assert_eq!(opens.open(&mut sealed).unwrap(), (ContentType::ApplicationData, length));
            assert_eq!(sealed[HEAD..HEAD + length], content);
            opens.sequence -= 1;
            let mut again = replay.clone();
            assert!(opens.open(&mut again).is_ok(), "the same number opens it");
            let mut again = replay;
            assert_eq!(opens.open(&mut again).unwrap_err(), Error::DecryptError, "the next one does not");
            opens.sequence -= 1;
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let mut sealed = record(b"transfer 10");
        protection(0).seal(ContentType::ApplicationData, &mut sealed).unwrap();
        for at in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[at / 8] ^= 1 << (at % 8);
            assert!(protection(0).open(&mut changed).is_err(), "bit {at}");
        }
    }

    #[test]
    fn padding_is_taken_off_and_nothing_but_padding_is_refused() {
        let mut sealed = padded(b"hello", 23, 200);
        assert_eq!(protection(0).open(&mut sealed).unwrap(), (ContentType::ApplicationData, 5));
        let mut sealed = padded(b"", 0, 3);
        assert_eq!(
            protection(0).open(&mut sealed).unwrap_err(),
            Error::from(PeerMisbehaved::IllegalTlsInnerPlaintext)
        );
        let mut sealed = padded(&[1; CONTENT + 1], 23, 0);
        assert_eq!(protection(0).open(&mut sealed).unwrap_err(), Error::PeerSentOversizedRecord);
    }

    #[test]
    fn too_short_too_long_and_unprotected_records_are_refused() {
        for length in 0..TAG {
            let mut short = vec![23, 3, 3, 0, length as u8];
            short.resize(HEAD + length, 0);
            assert!(protection(0).open(&mut short).is_err());
        }
        assert_eq!(whole(&[23, 3, 3, 0x41, 1]).unwrap_err(), Error::PeerSentOversizedRecord);
        assert_eq!(whole(&[23, 3, 3, 0x41, 0]).unwrap(), None);
        for kind in [0, 20, 21, 22, 24, 255] {
            assert!(whole(&[kind, 3, 3, 0, 1, 0]).is_err());
        }
    }

    #[test]
    fn the_last_number_is_not_used_twice() {
        let mut last = protection(u64::MAX);
        assert!(last.seal(ContentType::ApplicationData, &mut record(b"x")).is_err());
    }
}
