package io.niwaki

import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.Duration.Companion.seconds
import io.niwaki.ffi.ApiKeySource as NativeKeySource
import io.niwaki.ffi.Endpoint as NativeEndpoint
import io.niwaki.ffi.EndpointFailure as NativeFailure
import io.niwaki.ffi.EndpointRetry as NativeRetry
import io.niwaki.ffi.EndpointTimeouts as NativeTimeouts
import io.niwaki.ffi.NiwakiException as NativeException

/**
 * An endpoint that speaks OpenAI's chat completions.
 *
 * ```
 * Endpoint("https://api.example.com", "large-model", apiKey = { keys.current() }, transport = OkHttpTransport(client))
 * ```
 *
 * @property url its base URL, with or without `/v1` at its end.
 * @property model the model to ask for, as the endpoint calls it.
 * @property apiKey gives out the key when a request is about to be sent, null for none. It is called on a thread of the
 *   library and may block. Its key is not kept; when it throws, nothing is sent.
 * @property transport the HTTP stack that carries the requests.
 * @property timeouts how long each wait may be.
 * @property retry how often a request is sent again.
 * @property allowPlaintext whether text and key may travel unencrypted to another machine than this one.
 */
public class Endpoint(
    public val url: String,
    public val model: String,
    public val apiKey: () -> String? = { null },
    public val transport: Transport = HttpUrlConnectionTransport(),
    public val timeouts: EndpointTimeouts = EndpointTimeouts(),
    public val retry: EndpointRetry = EndpointRetry(),
    public val allowPlaintext: Boolean = false,
) {
    internal fun toNative() = NativeEndpoint(url, model, timeouts.toNative(), retry.toNative(), allowPlaintext)
}

/**
 * How long each wait for an endpoint may be.
 *
 * @property connect for finding the host, connecting and the TLS handshake.
 * @property firstByte from the connection to the head of the response.
 * @property idle between two lines of the stream.
 * @property total for the whole answer, retries and the waits between them included.
 */
public data class EndpointTimeouts(
    val connect: Duration = 10.seconds,
    val firstByte: Duration = 60.seconds,
    val idle: Duration = 30.seconds,
    val total: Duration = 600.seconds,
) {
    init {
        require(listOf(connect, firstByte, idle, total).none { it.isNegative() }) { "a timeout is negative: $this" }
    }

    internal fun toNative() = NativeTimeouts(
        connectMs = connect.inWholeMilliseconds.toULong(),
        firstByteMs = firstByte.inWholeMilliseconds.toULong(),
        idleMs = idle.inWholeMilliseconds.toULong(),
        totalMs = total.inWholeMilliseconds.toULong(),
    )
}

/**
 * How often, and how soon, a request is sent again before its first text came.
 *
 * @property maxRetries most times it is sent again.
 * @property backoff the longest wait before the first retry; it doubles with each.
 * @property maxWait the longest wait. An endpoint that asks for more is not waited for.
 */
public data class EndpointRetry(
    val maxRetries: Int = 2,
    val backoff: Duration = 500.milliseconds,
    val maxWait: Duration = 10.seconds,
) {
    init {
        require(maxRetries >= 0) { "maxRetries $maxRetries is negative" }
        require(!backoff.isNegative() && !maxWait.isNegative()) { "a wait is negative: $this" }
    }

    internal fun toNative() = NativeRetry(
        maxRetries = maxRetries.toUInt(),
        backoffMs = backoff.inWholeMilliseconds.toULong(),
        maxWaitMs = maxWait.inWholeMilliseconds.toULong(),
    )
}

/** What failed at an endpoint, or on the way to it. */
public enum class EndpointFailure {
    /** The app's key source threw. */
    KeyUnavailable,

    /** The key holds characters that no header can. */
    InvalidKey,

    /** Nothing listens there. */
    Refused,

    /** No network, or no route. */
    Unreachable,

    /** The name has no address. */
    Dns,

    /** Its identity is not proven. */
    Tls,

    /** No connection in time. */
    ConnectTimeout,

    /** No response in time. */
    FirstByteTimeout,

    /** Nothing more came. */
    IdleTimeout,

    /** No complete answer in time. */
    TotalTimeout,

    /** It does not accept the key. */
    Unauthorized,

    /** It accepts no more requests for now. */
    RateLimited,

    /** It failed. */
    Server,

    /** It knows no such path or model. */
    NotFound,

    /** It does not accept the request. */
    BadRequest,

    /** It redirects, which is not followed. */
    Redirected,

    /** What it sends is no stream of chat completions. */
    Protocol,

    /** It sends more than is accepted. */
    TooLarge,

    /** It reported a failure within its stream. */
    Reported,

    /** The connection ended before the answer did. */
    Interrupted,

    /** The app's own transport failed. */
    Transport,
}

internal fun NativeFailure.toFailure(): EndpointFailure = when (this) {
    NativeFailure.KEY_UNAVAILABLE -> EndpointFailure.KeyUnavailable
    NativeFailure.INVALID_KEY -> EndpointFailure.InvalidKey
    NativeFailure.REFUSED -> EndpointFailure.Refused
    NativeFailure.UNREACHABLE -> EndpointFailure.Unreachable
    NativeFailure.DNS -> EndpointFailure.Dns
    NativeFailure.TLS -> EndpointFailure.Tls
    NativeFailure.CONNECT_TIMEOUT -> EndpointFailure.ConnectTimeout
    NativeFailure.FIRST_BYTE_TIMEOUT -> EndpointFailure.FirstByteTimeout
    NativeFailure.IDLE_TIMEOUT -> EndpointFailure.IdleTimeout
    NativeFailure.TOTAL_TIMEOUT -> EndpointFailure.TotalTimeout
    NativeFailure.UNAUTHORIZED -> EndpointFailure.Unauthorized
    NativeFailure.RATE_LIMITED -> EndpointFailure.RateLimited
    NativeFailure.SERVER -> EndpointFailure.Server
    NativeFailure.NOT_FOUND -> EndpointFailure.NotFound
    NativeFailure.BAD_REQUEST -> EndpointFailure.BadRequest
    NativeFailure.REDIRECTED -> EndpointFailure.Redirected
    NativeFailure.PROTOCOL -> EndpointFailure.Protocol
    NativeFailure.TOO_LARGE -> EndpointFailure.TooLarge
    NativeFailure.REPORTED -> EndpointFailure.Reported
    NativeFailure.INTERRUPTED -> EndpointFailure.Interrupted
    NativeFailure.TRANSPORT -> EndpointFailure.Transport
}

internal class NativeKey(private val key: () -> String?) : NativeKeySource {
    override fun apiKey(): String? =
        try {
            key()
        } catch (e: Throwable) {
            // What it says may hold the key, and UniFFI passes no errors on.
            throw NativeException.Internal("the key source threw")
        }
}
