//! The cipher over a ring of keys that can be read again while the worker runs.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use ring::{
    aead::{Aad, LessSafeKey, NONCE_LEN, Nonce},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::{
    application::ports::{Cipher, CipherError},
    domain::values::SealedSecrets,
};

use super::KeyRing;

/// A key file is no longer than this, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// An unknown key id makes the worker read the file again at most this often.
const REREAD_PAUSE: Duration = Duration::from_secs(1);

/// AES-256-GCM with a random 96-bit nonce; the sealed bytes are nonce, ciphertext and tag.
pub struct RingCipher {
    keys: ArcSwap<KeyRing>,
    file: Option<PathBuf>,
    random: SystemRandom,
    /// When an unknown key id last made the file be read; locked while the file is read.
    reread_at: Mutex<Option<Instant>>,
    reread_pause: Duration,
}

impl RingCipher {
    /// Reads the keys from a file, which [`Self::reload`] and an unknown key id read again.
    ///
    /// # Errors
    /// Every fault; never key material.
    pub fn from_file(path: &Path) -> Result<Self, Vec<String>> {
        Ok(Self::new(read(path)?, Some(path.to_owned())))
    }

    /// Reads the keys from a text, once and for all.
    ///
    /// # Errors
    /// Every fault; never key material.
    pub fn from_text(text: &str) -> Result<Self, Vec<String>> {
        Ok(Self::new(KeyRing::parse(text)?, None))
    }

    fn new(keys: KeyRing, file: Option<PathBuf>) -> Self {
        Self {
            keys: ArcSwap::from_pointee(keys),
            file,
            random: SystemRandom::new(),
            reread_at: Mutex::new(None),
            reread_pause: REREAD_PAUSE,
        }
    }

    /// The keys as they stand.
    pub fn keys(&self) -> Arc<KeyRing> {
        self.keys.load_full()
    }

    /// Reads the file again, once, where the keys came from one, and answers the keys that stand then.
    /// A ring is taken only when it has every `needed` key, and the key that encrypts now: something that
    /// it sealed may be about to be stored. None of those may have become another key of the same id.
    ///
    /// # Errors
    /// Every fault of the file and every key that it lacks; the keys that stood before go on.
    pub fn reload(&self, needed: &[String]) -> Result<Arc<KeyRing>, Vec<String>> {
        let _turn = self.turn();
        let first = self.keys.load().first().0.to_owned();
        let needed = needed.iter().map(String::as_str);
        self.take_file(&needed.chain([first.as_str()]).collect())
    }

    /// Reads the file again because of an unknown key id. Who comes while another one reads waits for
    /// the outcome. Nobody can ask the database here which keys it needs, so all known ones must stay.
    fn reload_for(&self, key_id: &str) -> Option<Arc<KeyRing>> {
        self.file.as_ref()?;
        let mut last = self.turn();
        let keys = self.keys();
        if keys.get(key_id).is_some() {
            return Some(keys);
        }
        if last.is_some_and(|at| at.elapsed() < self.reread_pause) {
            return None;
        }
        *last = Some(Instant::now());
        match self.take_file(&keys.ids().collect()) {
            Ok(keys) => keys.get(key_id).is_some().then_some(keys),
            Err(faults) => {
                tracing::warn!(
                    unknown_key = key_id,
                    faults = faults.join("; "),
                    "the encryption keys could not be read again, the former ones go on; a key is dropped \
                     on SIGHUP alone, once the database does not need it"
                );
                None
            }
        }
    }

    /// The turn to read the file, with the time of the last re-read.
    fn turn(&self) -> MutexGuard<'_, Option<Instant>> {
        self.reread_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The one way to other keys. It wants the turn to be held.
    fn take_file(&self, needed: &BTreeSet<&str>) -> Result<Arc<KeyRing>, Vec<String>> {
        let Some(path) = &self.file else {
            return Ok(self.keys());
        };
        let (former, ring) = (self.keys.load(), read(path)?);
        let mut faults = ring.missing(needed.iter().copied());
        let others = needed
            .iter()
            .filter(|id| self.is_another(&former, &ring, id));
        faults.extend(others.map(|id| format!("the key {id:?} is another one than before")));
        if faults.is_empty() {
            self.keys.store(Arc::new(ring));
            Ok(self.keys())
        } else {
            Err(faults)
        }
    }

    /// Whether both rings have the id and what one seals does not open with the other.
    fn is_another(&self, former: &KeyRing, ring: &KeyRing, id: &str) -> bool {
        let (Some(before), Some(now)) = (former.get(id), ring.get(id)) else {
            return false;
        };
        let sealed = self.seal_with(before, b"", id);
        sealed.is_none_or(|sealed| open_with(now, &sealed, id).is_err())
    }

    /// Nonce, ciphertext and tag.
    fn seal_with(&self, key: &LessSafeKey, plain: &[u8], context: &str) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut text = plain.to_vec();
        let tag = key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.as_bytes()),
                &mut text,
            )
            .ok()?;
        Some([&nonce, text.as_slice(), tag.as_ref()].concat())
    }
}

impl Cipher for RingCipher {
    fn seal(&self, plain: &[u8], context: &str) -> Result<SealedSecrets, CipherError> {
        let keys = self.keys.load();
        let (id, key) = keys.first();
        let bytes = self
            .seal_with(key, plain, context)
            .ok_or(CipherError::Broken)?;
        Ok(SealedSecrets {
            key_id: id.to_owned(),
            bytes,
        })
    }

    fn open(&self, sealed: &SealedSecrets, context: &str) -> Result<Vec<u8>, CipherError> {
        if let Some(key) = self.keys.load().get(&sealed.key_id) {
            return open_with(key, &sealed.bytes, context);
        }
        let unknown = || CipherError::UnknownKey(sealed.key_id.clone());
        let keys = self.reload_for(&sealed.key_id).ok_or_else(unknown)?;
        let key = keys.get(&sealed.key_id).ok_or_else(unknown)?;
        open_with(key, &sealed.bytes, context)
    }
}

impl fmt::Debug for RingCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingCipher")
            .field("keys", &self.keys())
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

fn open_with(key: &LessSafeKey, bytes: &[u8], context: &str) -> Result<Vec<u8>, CipherError> {
    let (nonce, text) = bytes
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(CipherError::Broken)?;
    let mut plain = text.to_vec();
    let length = key
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(context.as_bytes()),
            &mut plain,
        )
        .map_err(|_| CipherError::Broken)?
        .len();
    plain.truncate(length);
    Ok(plain)
}

fn read(path: &Path) -> Result<KeyRing, Vec<String>> {
    let fault = |what: &dyn fmt::Display| vec![format!("{}: {what}", path.display())];
    let mut text = String::new();
    let read = File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
        .map_err(|error| fault(&error))?;
    if read as u64 > MAX_FILE {
        return Err(fault(&format_args!("longer than {MAX_FILE} bytes")));
    }
    KeyRing::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infrastructure::{clock::SystemClock, crypto::generate_key_line};

    fn line(id: &str) -> String {
        generate_key_line(id, &SystemClock::new())
    }

    #[test]
    fn what_is_sealed_opens_in_its_context_alone_and_never_looks_the_same() {
        let cipher = RingCipher::from_text(&line("k1")).unwrap();
        for plain in [&b""[..], b"secret", &[7; 5000]] {
            let sealed = cipher.seal(plain, "w1").unwrap();
            assert_eq!(sealed.key_id, "k1");
            assert_eq!(cipher.open(&sealed, "w1").unwrap(), plain);
            assert_eq!(cipher.open(&sealed, "w2"), Err(CipherError::Broken));
            assert_ne!(cipher.seal(plain, "w1").unwrap().bytes, sealed.bytes);
        }
    }

    #[test]
    fn changed_short_and_foreign_bytes_do_not_open() {
        let cipher = RingCipher::from_text(&line("k1")).unwrap();
        let sealed = cipher.seal(b"secret", "w1").unwrap();
        for at in 0..sealed.bytes.len() {
            let mut changed = sealed.clone();
            changed.bytes[at] ^= 1;
            assert_eq!(cipher.open(&changed, "w1"), Err(CipherError::Broken));
            changed.bytes.truncate(at);
            assert_eq!(cipher.open(&changed, "w1"), Err(CipherError::Broken));
        }
        let other = RingCipher::from_text(&line("k1")).unwrap();
        assert_eq!(other.open(&sealed, "w1"), Err(CipherError::Broken));
    }

    #[test]
    fn after_a_rotation_the_new_key_encrypts_and_the_old_one_still_decrypts() {
        let (old, new) = (line("old"), line("new"));
        let before = RingCipher::from_text(&old).unwrap();
        let sealed = before.seal(b"secret", "w1").unwrap();
        let after = RingCipher::from_text(&format!("{new}\n{old}")).unwrap();
        assert_eq!(after.open(&sealed, "w1").unwrap(), b"secret");
        let sealed = after.seal(b"secret", "w1").unwrap();
        assert_eq!(sealed.key_id, "new");
        let unknown = CipherError::UnknownKey("new".to_owned());
        assert_eq!(before.open(&sealed, "w1"), Err(unknown));
    }

    #[test]
    fn an_unknown_key_id_makes_the_file_be_read_again_but_not_all_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let (k1, k2, k3) = (line("k1"), line("k2"), line("k3"));
        std::fs::write(&path, &k1).unwrap();
        let mut cipher = RingCipher::from_file(&path).unwrap();
        cipher.reread_pause = Duration::from_hours(1);
        let seal = |key: &str| {
            let cipher = RingCipher::from_text(key).unwrap();
            cipher.seal(b"secret", "w1").unwrap()
        };
        std::fs::write(&path, format!("{k2}\n{k1}")).unwrap();
        assert_eq!(cipher.open(&seal(&k2), "w1").unwrap(), b"secret");
        assert_eq!(cipher.seal(b"x", "w1").unwrap().key_id, "k2");

        std::fs::write(&path, format!("{k3}\n{k2}\n{k1}")).unwrap();
        let unknown = Err(CipherError::UnknownKey("k3".to_owned()));
        assert_eq!(cipher.open(&seal(&k3), "w1"), unknown);
        cipher.reread_pause = Duration::ZERO;
        assert_eq!(cipher.open(&seal(&k3), "w1").unwrap(), b"secret");
    }

    #[test]
    fn an_unknown_key_id_never_makes_a_known_key_be_forgotten_or_be_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let (k1, k2, k3) = (line("k1"), line("k2"), line("k3"));
        std::fs::write(&path, format!("{k2}\n{k1}")).unwrap();
        let mut cipher = RingCipher::from_file(&path).unwrap();
        cipher.reread_pause = Duration::ZERO;
        let seal = |key: &str| {
            let cipher = RingCipher::from_text(key).unwrap();
            cipher.seal(b"secret", "w1").unwrap()
        };
        let unknown = Err(CipherError::UnknownKey("k3".to_owned()));
        for file in [
            format!("{k3}\n{k2}"),
            format!("{k3}\n{k1}"),
            k3.clone(),
            format!("{k3}\n{k2}\n{}", line("k1")),
        ] {
            std::fs::write(&path, file).unwrap();
            assert_eq!(cipher.open(&seal(&k3), "w1"), unknown);
            assert_eq!(cipher.keys().ids().collect::<Vec<_>>(), ["k2", "k1"]);
            assert_eq!(cipher.open(&seal(&k1), "w1").unwrap(), b"secret");
        }
        std::fs::write(&path, format!("{k3}\n{k2}\n{k1}")).unwrap();
        assert_eq!(cipher.open(&seal(&k3), "w1").unwrap(), b"secret");
    }

    #[test]
    fn a_reloaded_ring_has_what_is_needed_and_the_key_that_encrypts_and_may_drop_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let (k1, k2, k3) = (line("k1"), line("k2"), line("k3"));
        let needed = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<Vec<_>>();
        for (file, needs, faults) in [
            (format!("{k2}\n{k3}"), &["k1"][..], &["\"k1\""][..]),
            (k3.clone(), &["k1"], &["\"k1\"", "\"k2\""]),
            (format!("{k3}\n{k1}"), &[], &["\"k2\""]),
            (
                format!("{k2}\n{}", line("k1")),
                &["k1"],
                &["\"k1\" is another"],
            ),
            (
                format!("{}\n{k1}", line("k2")),
                &["k1"],
                &["\"k2\" is another"],
            ),
            (format!("{k3}\n{k2}"), &["k2"], &[]),
            (format!("{k3}\n{k2}"), &[], &[]),
            (format!("{k3}\n{k2}\n{k1}"), &["k3", "k1"], &[]),
        ] {
            std::fs::write(&path, format!("{k2}\n{k1}")).unwrap();
            let cipher = RingCipher::from_file(&path).unwrap();
            std::fs::write(&path, &file).unwrap();
            let told = cipher.reload(&needed(needs)).err().unwrap_or_default();
            assert_eq!(told.len(), faults.len(), "{told:?}");
            for (told, fault) in told.iter().zip(faults) {
                assert!(told.contains(fault), "{told}");
            }
            let taken = cipher.keys().ids().next() == Some("k3");
            assert_eq!(taken, faults.is_empty());
        }
    }

    #[test]
    fn a_broken_file_is_a_fault_and_the_keys_before_it_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let faults = RingCipher::from_file(&path).unwrap_err();
        assert!(faults[0].contains("keys: "), "{faults:?}");
        std::fs::write(&path, line("k1")).unwrap();
        let cipher = RingCipher::from_file(&path).unwrap();
        std::fs::write(&path, "nonsense").unwrap();
        assert_eq!(cipher.reload(&[]).unwrap_err().len(), 1);
        assert_eq!(cipher.keys().ids().collect::<Vec<_>>(), ["k1"]);
    }

    #[test]
    fn nothing_of_a_key_or_a_secret_is_shown() {
        let key = line("k1");
        let cipher = RingCipher::from_text(&key).unwrap();
        let shown = format!("{cipher:?} {:?}", cipher.seal(b"secret", "w1").unwrap());
        assert!(!shown.contains(key.split_once(':').unwrap().1), "{shown}");
        assert!(shown.contains("k1") && !shown.contains("secret"), "{shown}");
    }
}
