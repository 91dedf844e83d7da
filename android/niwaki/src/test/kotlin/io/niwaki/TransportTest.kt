package io.niwaki

import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import java.io.ByteArrayInputStream
import java.io.IOException
import java.io.InputStream
import java.net.ConnectException
import java.net.NoRouteToHostException
import java.net.SocketTimeoutException
import java.net.UnknownHostException
import java.util.concurrent.atomic.AtomicInteger
import javax.net.ssl.SSLHandshakeException
import kotlin.time.Duration
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.Duration.Companion.seconds
import kotlin.time.TimeSource

/** Transports of an app, good and hostile. */
class TransportTest {
    private val stream = mapOf("Content-Type" to "text/event-stream")
    private val cancelled = AtomicInteger()

    /** A transport with a response that [send] gives. */
    private fun sending(send: () -> HttpResponse) = Transport {
        object : Exchange {
            override fun send() = send()

            override fun cancel() {
                cancelled.incrementAndGet()
            }
        }
    }

    private fun reading(body: InputStream) = sending { HttpResponse(200, stream, body) }

    /** A body that [next] gives the bytes of, call by call. */
    private fun body(next: (ByteArray, Int) -> Int) = object : InputStream() {
        private var calls = 0

        override fun read(): Int = error("it is read in pieces")

        override fun read(buffer: ByteArray, offset: Int, length: Int): Int = next(buffer, calls++)
    }

    private fun ByteArray.put(text: String): Int = text.encodeToByteArray().let { it.copyInto(this).let { _ -> it.size } }

    private fun ask(
        transport: Transport,
        idle: Duration = 300.milliseconds,
        apiKey: () -> String? = { null },
    ): List<RoutedToken> = runBlocking {
        val endpoint = Endpoint("https://api.example.com", "large") {
            this.apiKey = apiKey
            this.transport = transport
            timeouts = EndpointTimeouts {
                connect = 200.milliseconds
                firstByte = 200.milliseconds
                this.idle = idle
                total = 20.seconds
            }
            retry = EndpointRetry { maxRetries = 0 }
        }
        val policy = RoutingPolicy(RoutingMode.CloudOnly)
        Router.create(policy, endpoint = endpoint).use { it.answer(listOf(Message.user("secret"))).toList() }
    }

    private fun failure(
        transport: Transport,
        idle: Duration = 300.milliseconds,
        apiKey: () -> String? = { null },
    ): EndpointFailure {
        val began = TimeSource.Monotonic.markNow()
        val error = assertThrows<NiwakiException.EndpointFailed> { ask(transport, idle, apiKey) }
        assertTrue(began.elapsedNow() < 15.seconds)
        return error.failure
    }

    private fun hang(): Nothing {
        while (true) Thread.sleep(1000)
    }

    @Test
    fun `an answer comes over the app's own stack which gets what it needs`() {
        var seen: HttpRequest? = null
        val transport = Transport { request ->
            seen = request
            reading(ByteArrayInputStream((piece("by the ") + piece("app") + ending).encodeToByteArray())).exchange(request)
        }
        val answer = ask(transport, apiKey = { "sk-test" })
        assertEquals("by the app", answer.joinToString("") { it.text })
        val request = checkNotNull(seen)
        assertEquals("https://api.example.com/v1/chat/completions", request.url)
        assertEquals("Bearer sk-test", request.headers["authorization"])
        assertTrue("secret" in request.body.decodeToString())
        assertTrue("secret" !in request.toString() && "sk-test" !in request.toString())
        assertEquals(200.milliseconds, request.connectTimeout)
    }

    @Test
    fun `what it throws has its failure`() {
        val failures = mapOf(
            ConnectException("Connection refused") to EndpointFailure.Refused,
            ConnectException("connect failed: ENETUNREACH (Network is unreachable)") to EndpointFailure.Unreachable,
            NoRouteToHostException() to EndpointFailure.Unreachable,
            UnknownHostException("api.example.com") to EndpointFailure.Dns,
            SSLHandshakeException("unknown issuer") to EndpointFailure.Tls,
            SocketTimeoutException() to EndpointFailure.ConnectTimeout,
            IOException("secret") to EndpointFailure.Interrupted,
            IllegalStateException("secret") to EndpointFailure.Transport,
            StackOverflowError() to EndpointFailure.Transport,
        )
        for ((thrown, failure) in failures) {
            assertEquals(failure, failure(sending { throw thrown })) { "$thrown" }
            if (thrown !is SocketTimeoutException) assertEquals(failure, failure(Transport { throw thrown })) { "$thrown" }
        }
        assertEquals(EndpointFailure.Interrupted, failure(reading(body { _, _ -> throw SocketTimeoutException() })))
        assertEquals(EndpointFailure.KeyUnavailable, failure(reading(body { _, _ -> -1 })) { error("locked: sk-test") })
    }

    @Test
    fun `one that never returns holds nobody up`() {
        assertEquals(EndpointFailure.FirstByteTimeout, failure(Transport { hang() }))
        assertEquals(EndpointFailure.FirstByteTimeout, failure(sending { hang() }))
        assertEquals(EndpointFailure.FirstByteTimeout, failure(reading(body { _, _ -> -1 })) { hang() })
        val hanging = Transport {
            object : Exchange {
                override fun send() = HttpResponse(200, stream, body { _, _ -> hang() })

                override fun cancel() = hang()
            }
        }
        assertEquals(EndpointFailure.IdleTimeout, failure(hanging))
    }

    @Test
    fun `nonsense is no answer`() {
        val empty = ByteArrayInputStream(ByteArray(0))
        for (status in listOf(-1, 0, 99, 999, 70_000)) {
            assertEquals(EndpointFailure.Protocol, failure(sending { HttpResponse(status, stream, empty) }))
        }
        assertEquals(EndpointFailure.Protocol, failure(sending { HttpResponse(200, emptyMap(), empty) }))
        val unpaired = mapOf("Content-Type" to "text/event-stream", "X" to "\uD800")
        assertEquals(EndpointFailure.Transport, failure(sending { HttpResponse(200, unpaired, empty) }))
        assertEquals(EndpointFailure.Protocol, failure(reading(body { bytes, _ -> bytes.put("data: \u0000{]\n\n") })))
        // Nothing, and again nothing: an answer that never comes.
        assertEquals(EndpointFailure.IdleTimeout, failure(reading(body { _, _ -> 0 })))
        // More of it than there is room for.
        assertEquals(EndpointFailure.Transport, failure(reading(body { bytes, _ -> bytes.size + 1 })))
        // An event, and a response, without an end.
        for (byte in "x\n") {
            val endless = reading(body { bytes, _ -> bytes.also { it.fill(byte.code.toByte()) }.size })
            assertEquals(EndpointFailure.TooLarge, failure(endless, idle = 15.seconds))
        }
    }

    @Test
    fun `it is cancelled when nobody wants the rest`() = runBlocking<Unit> {
        assertEquals(EndpointFailure.Protocol, failure(reading(body { bytes, _ -> bytes.put("data: x\n\n") })))
        eventually("it was cancelled") { cancelled.get() == 1 }
    }
}
