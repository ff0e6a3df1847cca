//! Who is let in: everybody, or who has the token, as a header (programs) or as a cookie (pages).
//!
//! The cookie does not hold the token, but a random word of this process: who reads the cookie can
//! use the console until it is started again, and does not know the token.
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::api::error::ApiError;

/// The cookie's name.
pub const COOKIE: &str = "millrace_session";
/// Shortest token, bytes.
const MIN_TOKEN_BYTES: usize = 24;
/// Longest token file, bytes.
const MAX_TOKEN_BYTES: u64 = 4096;
/// How long the browser keeps the cookie, seconds.
const COOKIE_AGE_S: u32 = 12 * 3600;
/// What a wrong token costs whoever tries it.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(300);
/// Wrong tokens that may be paused for at once.
const TRIES_AT_ONCE: usize = 8;

/// Why a token file cannot be used.
#[derive(Debug, Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("--token-file {path}: {source}")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others may read it.
    #[error("--token-file {path}: others may read or write it (mode {mode:04o}): chmod 600 {path}")]
    Open {
        /// The path.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What is in it is no token.
    #[error(
        "--token-file {path}: expected one line of {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} visible \
         ASCII characters, as `openssl rand -hex 24` prints it"
    )]
    NoToken {
        /// The path.
        path: PathBuf,
    },
    /// No random bytes.
    #[error("/dev/urandom: {0}")]
    NoRandom(std::io::Error),
}

/// Who is let in.
#[derive(Debug)]
pub struct Access {
    secrets: Option<Secrets>,
    /// Cookies only over TLS.
    secure: bool,
    tries: Semaphore,
}

struct Secrets {
    token: Vec<u8>,
    session: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl Access {
    /// Everybody: for loopback.
    #[must_use]
    pub fn open() -> Self {
        Self { secrets: None, secure: false, tries: Semaphore::new(TRIES_AT_ONCE) }
    }

    /// Who has the token in the file; `secure` when it is asked for over TLS.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn by_file(path: &Path, secure: bool) -> Result<Self, TokenError> {
        let token = read_token(path)?;
        let session = random_word().map_err(TokenError::NoRandom)?;
        let secrets = Some(Secrets { token, session });
        Ok(Self { secrets, secure, tries: Semaphore::new(TRIES_AT_ONCE) })
    }

    /// Whether a token is asked for.
    #[must_use]
    pub fn asks_for_token(&self) -> bool {
        self.secrets.is_some()
    }

    /// Whether a request with these headers is let in.
    #[must_use]
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(Secrets { token, session }) = &self.secrets else { return true };
        let bearer = headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| {
            let (scheme, rest) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
        });
        let cookies = headers.get_all(header::COOKIE).iter().flat_map(|value| {
            value.as_bytes().split(|&byte| byte == b';').filter_map(|pair| {
                pair.trim_ascii().strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"=")
            })
        });
        // No short cut: how long this takes says nothing of the secrets.
        let by_token = bearer.fold(0, |any, given| any | same(given, token));
        let by_cookie = cookies.fold(0, |any, given| any | same(given, session.as_bytes()));
        by_token | by_cookie == 1
    }

    /// The cookie for whoever has the token.
    ///
    /// # Errors
    /// 401, after a pause, when the token is wrong; 404 when none is asked for.
    pub async fn log_in(&self, given: &str) -> Result<String, ApiError> {
        let Some(Secrets { token, session }) = &self.secrets else {
            return Err(ApiError::not_found("this console asks for no token"));
        };
        let Ok(_try) = self.tries.try_acquire() else {
            return Err(ApiError::busy("too many try to log in: ask again"));
        };
        if same(given.trim().as_bytes(), token) == 0 {
            tokio::time::sleep(WRONG_TOKEN_PAUSE).await;
            let message = "that is not the token: it stands in the file that --token-file names";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "wrong_token", message));
        }
        Ok(self.cookie(session, COOKIE_AGE_S))
    }

    /// A cookie that takes the place of the other, and is over.
    #[must_use]
    pub fn no_cookie(&self) -> String {
        self.cookie("", 0)
    }

    fn cookie(&self, value: &str, age_s: u32) -> String {
        let secure = if self.secure { "; Secure" } else { "" };
        format!("{COOKIE}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}")
    }
}

fn same(given: &[u8], secret: &[u8]) -> u8 {
    given.ct_eq(secret).unwrap_u8()
}

fn read_token(path: &Path) -> Result<Vec<u8>, TokenError> {
    let unreadable = |source| TokenError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TokenError::Open { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(MAX_TOKEN_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let token = bytes.trim_ascii();
    let visible = token.iter().all(u8::is_ascii_graphic);
    if !visible || token.len() < MIN_TOKEN_BYTES || bytes.len() as u64 > MAX_TOKEN_BYTES {
        return Err(TokenError::NoToken { path: path.to_owned() });
    }
    Ok(token.to_vec())
}

/// 256 bits from the kernel, as hex digits.
fn random_word() -> std::io::Result<String> {
    let mut bytes = [0_u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt as _;

    const TOKEN: &str = "0123456789abcdef01234567";

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn access() -> Access {
        Access::by_file(file(&format!("{TOKEN}\n"), 0o600).path(), true).unwrap()
    }

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn the_token_is_taken_from_the_header_only_when_it_is_right() {
        let access = access();
        let bearer = |value: &str| access.admits(&headers(header::AUTHORIZATION, value));
        assert!(bearer(&format!("Bearer {TOKEN}")) && bearer(&format!("bearer {TOKEN}")));
        for wrong in
            ["", "Bearer", "Bearer ", &format!("Basic {TOKEN}"), &format!("Bearer {TOKEN}x"), TOKEN]
        {
            assert!(!bearer(wrong), "{wrong}");
        }
        assert!(!access.admits(&HeaderMap::new()));
        assert!(Access::open().admits(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn the_cookie_lets_in_and_does_not_tell_the_token() {
        let access = access();
        let cookie = access.log_in(TOKEN).await.unwrap();
        assert!(!cookie.contains(TOKEN));
        for attribute in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        let pair = cookie.split(';').next().unwrap();
        assert!(access.admits(&headers(header::COOKIE, &format!("a=b; {pair}; c=d"))));
        assert!(!access.admits(&headers(header::COOKIE, &format!("{COOKIE}={TOKEN}"))));
        assert!(!access.admits(&headers(header::COOKIE, &format!("{COOKIE}="))));
        assert!(!access.admits(&headers(header::COOKIE, &format!("x{pair}"))));
    }

    #[tokio::test]
    async fn a_wrong_token_gives_no_cookie() {
        let error = access().log_in("wrong").await.unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (401, "wrong_token"));
        assert_eq!(Access::open().log_in(TOKEN).await.unwrap_err().status.as_u16(), 404);
    }

    #[test]
    fn a_file_that_others_can_read_or_that_holds_no_token_is_refused() {
        let refused = |text: &str, mode| {
            Access::by_file(file(text, mode).path(), false).unwrap_err().to_string()
        };
        assert!(refused(TOKEN, 0o644).contains("chmod 600"));
        for text in ["", "short", "0123456789abcdef 0123456789", "ü123456789abcdef01234567"] {
            assert!(refused(text, 0o600).contains("openssl rand"), "{text}");
        }
        assert!(refused(&"x".repeat(5000), 0o600).contains("expected one line"));
        let gone = Access::by_file(Path::new("/nonexistent"), false).unwrap_err().to_string();
        assert!(gone.starts_with("--token-file /nonexistent: "), "{gone}");
    }

    proptest! {
        #[test]
        fn no_header_but_the_right_one_is_let_in(bytes: Vec<u8>, name in 0..2) {
            let name = [header::AUTHORIZATION, header::COOKIE][name as usize].clone();
            let Ok(value) = header::HeaderValue::from_bytes(&bytes) else { return Ok(()) };
            let secrets = Secrets { token: TOKEN.into(), session: "s".repeat(64) };
            let access = Access { secrets: Some(secrets), ..Access::open() };
            prop_assert!(!access.admits(&HeaderMap::from_iter([(name, value)])));
        }
    }
}
