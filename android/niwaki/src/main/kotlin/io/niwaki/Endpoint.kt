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
 * Endpoint("https://api.example.com", "large-model") {
 *     apiKey = { keys.current() }
 *     transport = OkHttpTransport(client)
 * }
 * ```
 */
public class Endpoint private constructor(
    /** Its base URL, with or without `/v1` at its end. */
    public val url: String,
    /** The model to ask for, as the endpoint calls it. */
    public val model: String,
    builder: Builder,
) {
    /**
     * Gives out the key when a request is about to be sent, null for none. It is called on a thread of the library and may
     * block. Its key is not kept; when it throws, nothing is sent.
     */
    public val apiKey: () -> String? = builder.apiKey

    /** The HTTP stack that carries the requests; [HttpUrlConnectionTransport] when nothing is said. */
    public val transport: Transport = builder.transport

    /** How long each wait may be. */
    public val timeouts: EndpointTimeouts = builder.timeouts

    /** How often a request is sent again. */
    public val retry: EndpointRetry = builder.retry

    /** Whether text and key may travel unencrypted to another machine than this one. Not when nothing is said. */
    public val allowPlaintext: Boolean = builder.allowPlaintext

    /** The [model] at [url], and what [build] sets. */
    public constructor(url: String, model: String, build: Builder.() -> Unit = {}) :
        this(url, model, Builder().apply(build))

    internal fun toNative() = NativeEndpoint(
        url = url.wellFormed(),
        model = model.wellFormed(),
        timeouts = timeouts.toNative(),
        retry = retry.toNative(),
        allowPlaintext = allowPlaintext,
    )

    /** Sets the parts of the same names. */
    public class Builder internal constructor() {
        public var apiKey: () -> String? = { null }
        public var transport: Transport = HttpUrlConnectionTransport()
        public var timeouts: EndpointTimeouts = EndpointTimeouts()
        public var retry: EndpointRetry = EndpointRetry()
        public var allowPlaintext: Boolean = false
    }
}

/** How long each wait for an endpoint may be: `EndpointTimeouts { idle = 10.seconds }`. */
public class EndpointTimeouts private constructor(builder: Builder) {
    /** For finding the host, connecting and the TLS handshake; 10 seconds when nothing is said. */
    public val connect: Duration = builder.connect

    /** From the connection to the head of the response; 60 seconds when nothing is said. */
    public val firstByte: Duration = builder.firstByte

    /** Between two lines of the stream; 30 seconds when nothing is said. */
    public val idle: Duration = builder.idle

    /** For the whole answer, retries and the waits between them included; 600 seconds when nothing is said. */
    public val total: Duration = builder.total

    /** What [build] sets; nothing else is said. */
    public constructor(build: Builder.() -> Unit = {}) : this(Builder().apply(build))

    internal fun toNative() = NativeTimeouts(
        connectMs = connect.milliseconds("connect"),
        firstByteMs = firstByte.milliseconds("firstByte"),
        idleMs = idle.milliseconds("idle"),
        totalMs = total.milliseconds("total"),
    )

    /** Sets the waits of the same names. */
    public class Builder internal constructor() {
        public var connect: Duration = 10.seconds
        public var firstByte: Duration = 60.seconds
        public var idle: Duration = 30.seconds
        public var total: Duration = 600.seconds
    }
}

/** How often, and how soon, a request is sent again before its first text came: `EndpointRetry { maxRetries = 0 }`. */
public class EndpointRetry private constructor(builder: Builder) {
    /** Most times it is sent again; 2 when nothing is said. */
    public val maxRetries: Int = builder.maxRetries

    /** The longest wait before the first retry; it doubles with each. Half a second when nothing is said. */
    public val backoff: Duration = builder.backoff

    /** The longest wait. An endpoint that asks for more is not waited for. 10 seconds when nothing is said. */
    public val maxWait: Duration = builder.maxWait

    /** What [build] sets; nothing else is said. */
    public constructor(build: Builder.() -> Unit = {}) : this(Builder().apply(build))

    internal fun toNative() = NativeRetry(
        maxRetries = maxRetries.count("maxRetries"),
        backoffMs = backoff.milliseconds("backoff"),
        maxWaitMs = maxWait.milliseconds("maxWait"),
    )

    /** Sets the parts of the same names. */
    public class Builder internal constructor() {
        public var maxRetries: Int = 2
        public var backoff: Duration = 500.milliseconds
        public var maxWait: Duration = 10.seconds
    }
}

/** What failed at an endpoint, or on the way to it. More may come: a `when` over it has an `else`. */
public class EndpointFailure private constructor(private val name: String) {
    override fun toString(): String = name

    public companion object {
        /** The app's key source threw. */
        public val KeyUnavailable: EndpointFailure = EndpointFailure("KeyUnavailable")

        /** The key holds characters that no header can. */
        public val InvalidKey: EndpointFailure = EndpointFailure("InvalidKey")

        /** Nothing listens there. */
        public val Refused: EndpointFailure = EndpointFailure("Refused")

        /** No network, or no route. */
        public val Unreachable: EndpointFailure = EndpointFailure("Unreachable")

        /** The name has no address. */
        public val Dns: EndpointFailure = EndpointFailure("Dns")

        /** Its identity is not proven. */
        public val Tls: EndpointFailure = EndpointFailure("Tls")

        /** No connection in time. */
        public val ConnectTimeout: EndpointFailure = EndpointFailure("ConnectTimeout")

        /** No response in time. */
        public val FirstByteTimeout: EndpointFailure = EndpointFailure("FirstByteTimeout")

        /** Nothing more came. */
        public val IdleTimeout: EndpointFailure = EndpointFailure("IdleTimeout")

        /** No complete answer in time. */
        public val TotalTimeout: EndpointFailure = EndpointFailure("TotalTimeout")

        /** It does not accept the key. */
        public val Unauthorized: EndpointFailure = EndpointFailure("Unauthorized")

        /** It accepts no more requests for now. */
        public val RateLimited: EndpointFailure = EndpointFailure("RateLimited")

        /** It failed. */
        public val Server: EndpointFailure = EndpointFailure("Server")

        /** It knows no such path or model. */
        public val NotFound: EndpointFailure = EndpointFailure("NotFound")

        /** It does not accept the request. */
        public val BadRequest: EndpointFailure = EndpointFailure("BadRequest")

        /** It redirects, which is not followed. */
        public val Redirected: EndpointFailure = EndpointFailure("Redirected")

        /** What it sends is no stream of chat completions. */
        public val Protocol: EndpointFailure = EndpointFailure("Protocol")

        /** It sends more than is accepted. */
        public val TooLarge: EndpointFailure = EndpointFailure("TooLarge")

        /** It reported a failure within its stream. */
        public val Reported: EndpointFailure = EndpointFailure("Reported")

        /** The connection ended before the answer did. */
        public val Interrupted: EndpointFailure = EndpointFailure("Interrupted")

        /** The app's own transport failed. */
        public val Transport: EndpointFailure = EndpointFailure("Transport")
    }
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
            key()?.wellFormed()
        } catch (e: Throwable) {
            // What it says may hold the key, and UniFFI passes no errors on.
            throw NativeException.Internal("the key source threw")
        }
}
