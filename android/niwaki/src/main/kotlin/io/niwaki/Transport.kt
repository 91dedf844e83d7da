package io.niwaki

import java.io.IOException
import java.io.InputStream
import java.net.ConnectException
import java.net.NoRouteToHostException
import java.net.ProtocolException
import java.net.SocketTimeoutException
import java.net.UnknownHostException
import javax.net.ssl.SSLHandshakeException
import javax.net.ssl.SSLPeerUnverifiedException
import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import io.niwaki.ffi.Exchange as NativeExchange
import io.niwaki.ffi.HttpHeader as NativeHeader
import io.niwaki.ffi.HttpRequest as NativeRequest
import io.niwaki.ffi.ResponseHead as NativeHead
import io.niwaki.ffi.Transport as NativeTransportInterface
import io.niwaki.ffi.TransportException as NativeFailure

/**
 * An HTTP stack that carries requests to an [Endpoint]: [HttpUrlConnectionTransport], or the app's own with its
 * interceptors, trust store and metrics. Over OkHttp:
 *
 * ```
 * class OkHttpTransport(private val client: OkHttpClient) : Transport {
 *     override fun exchange(request: HttpRequest): Exchange {
 *         val call = client.newBuilder()
 *             .connectTimeout(request.connectTimeout.toJavaDuration())
 *             .readTimeout(request.readTimeout.toJavaDuration())
 *             .followRedirects(false)
 *             .retryOnConnectionFailure(false)
 *             .build()
 *             .newCall(
 *                 Request.Builder().url(request.url).headers(request.headers.toHeaders())
 *                     .post(request.body.toRequestBody()).build(),
 *             )
 *         return object : Exchange {
 *             override fun send(): HttpResponse =
 *                 call.execute().let { HttpResponse(it.code, it.headers.toMap(), it.body.byteStream()) }
 *
 *             override fun cancel() = call.cancel()
 *         }
 *     }
 * }
 * ```
 *
 * A transport sends a `POST` once, follows no redirect, retries nothing, caches nothing and logs neither headers nor
 * bodies: they hold a key and a user's text. Deadlines, retries, bounds and the reading of the stream are the library's.
 */
public fun interface Transport {
    /** Prepares [request]. Nothing is opened or resolved before [Exchange.send]. */
    public fun exchange(request: HttpRequest): Exchange
}

/** One request and its response. */
public interface Exchange {
    /**
     * Connects, sends the request and waits for the head of the response. It blocks, on a thread of the library that
     * then reads the body, to its end or until it throws, and closes it. A thread that never comes back holds nobody up.
     *
     * @throws IOException of `java.net` and `javax.net.ssl`: what it is decides whether the request is sent again.
     */
    @Throws(IOException::class)
    public fun send(): HttpResponse

    /**
     * Closes the connection, so that a call that waits throws. Comes from another thread, once at most, when nobody
     * wants the rest of the response.
     */
    public fun cancel()
}

/**
 * A `POST`. It is not printed: it holds a key and a user's text.
 *
 * @property url absolute URL, `https` unless plaintext was allowed.
 * @property headers among them the authorization.
 * @property body JSON.
 * @property connectTimeout how long finding the host, connecting and the TLS handshake may take together.
 * @property readTimeout how long the response may stay silent. The library's own deadlines come first: it is for stacks
 *   that would give up sooner unless they are told.
 */
public class HttpRequest internal constructor(
    public val url: String,
    public val headers: Map<String, String>,
    public val body: ByteArray,
    public val connectTimeout: Duration,
    public val readTimeout: Duration,
) {
    override fun toString(): String = "HttpRequest($url, ${body.size} bytes)"
}

/**
 * A response as it begins.
 *
 * @property status the status.
 * @property headers those that are needed are `content-type` and `retry-after`, in any case.
 * @property body hands on what has come without waiting for a whole buffer of it.
 */
public class HttpResponse(public val status: Int, public val headers: Map<String, String>, public val body: InputStream)

internal class NativeTransport(private val transport: Transport) : NativeTransportInterface {
    override fun exchange(request: NativeRequest): NativeExchange = carried(sending = true) {
        val exchange = transport.exchange(
            HttpRequest(
                url = request.url,
                headers = request.headers.associate { it.name to it.value },
                body = request.body,
                connectTimeout = request.connectTimeoutMs.toLong().milliseconds,
                readTimeout = request.readTimeoutMs.toLong().milliseconds,
            ),
        )
        RunningExchange(exchange)
    }
}

private const val BUFFER_BYTES = 16 * 1024

private class RunningExchange(private val exchange: Exchange) : NativeExchange {
    /** Only the thread that sends and reads takes it. */
    private var body: InputStream? = null
    private val buffer = ByteArray(BUFFER_BYTES)

    override fun send(): NativeHead = carried(sending = true) {
        val response = exchange.send()
        body = response.body
        if (response.status !in 0..UShort.MAX_VALUE.toInt()) throw NativeFailure.NotHttp()
        NativeHead(response.status.toUShort(), response.headers.map { (name, value) -> NativeHeader(name, value) })
    }

    override fun read(): ByteArray? = carried(sending = false) {
        val body = body
        val count = body?.read(buffer) ?: -1
        check(count <= buffer.size) { "more was read than there was room for" }
        if (count < 0) {
            body?.close()
            null
        } else {
            buffer.copyOf(count)
        }
    }

    override fun cancel() = carried(sending = false) { exchange.cancel() }
}

/** Calls an app's transport, so that only a [NativeFailure] comes out, of errors too: UniFFI passes none of them on. */
private inline fun <R> carried(sending: Boolean, call: () -> R): R =
    try {
        call()
    } catch (e: NativeFailure) {
        throw e
    } catch (e: Throwable) {
        throw when (e) {
            is UnknownHostException -> NativeFailure.Dns()
            is NoRouteToHostException -> NativeFailure.Unreachable()
            is ConnectException -> if (e.saysUnreachable) NativeFailure.Unreachable() else NativeFailure.Refused()
            is SSLHandshakeException, is SSLPeerUnverifiedException -> NativeFailure.Tls(e.message.orEmpty())
            is SocketTimeoutException -> if (sending) NativeFailure.ConnectTimeout() else NativeFailure.Interrupted()
            is ProtocolException -> NativeFailure.NotHttp()
            is IOException -> NativeFailure.Interrupted()
            else -> NativeFailure.Failed()
        }
    }

/** Android and the desktop tell the two apart only in words. */
private val ConnectException.saysUnreachable: Boolean
    get() = listOf("unreachable", "ENETUNREACH", "EHOSTUNREACH").any { message.orEmpty().contains(it, ignoreCase = true) }
