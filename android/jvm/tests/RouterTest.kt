package io.niwaki

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import okhttp3.OkHttpClient
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import java.io.File
import java.io.FilterInputStream
import java.io.IOException
import java.io.InputStream
import java.util.concurrent.CompletableFuture
import java.util.concurrent.TimeUnit
import java.util.concurrent.atomic.AtomicInteger
import kotlin.time.Duration.Companion.seconds
import kotlin.time.TimeSource

class RouterTest {
    private val chatModel = File(System.getProperty("niwaki.chatModel"))
    private val short = listOf(Message.user("Who was the king?"))
    private val long = listOf(Message.user("Once upon a time there was a king. ".repeat(10)))
    private val options = GenerateOptions { maxNewTokens = 6; sampling = Sampling.Greedy }
    private val once = EndpointRetry { maxRetries = 0 }

    private fun policy(mode: RoutingMode = RoutingMode.PreferLocal) = RoutingPolicy(mode) { maxLocalPromptTokens = 40 }

    /** What the library has ready, and what many apps have. */
    private val transports = listOf(HttpUrlConnectionTransport(), OkHttpTransport(OkHttpClient()))

    private fun endpoint(url: String, transport: Transport = transports.first()) =
        Endpoint(url, "large") {
            apiKey = { "sk-test" }
            this.transport = transport
            retry = once
        }

    private suspend fun <R> withRouter(policy: RoutingPolicy, endpoint: Endpoint?, use: suspend (Router) -> R): R =
        Engine.open(chatModel, oneThread).use { engine -> Router.create(policy, engine, endpoint).use { use(it) } }

    private suspend fun Router.ask(messages: List<Message>, onDeviceOnly: Boolean = false): List<RoutedToken> =
        answer(messages, options, onDeviceOnly).toList()

    private fun List<RoutedToken>.text() = joinToString("") { it.text }

    private inline fun <reified E : NiwakiException> fails(noinline work: suspend () -> Unit): E =
        assertThrows<E> { runBlocking { work() } }

    @Test
    fun `a prompt over the limit goes to the endpoint and one under it stays`() = runBlocking<Unit> {
        goodServer().use { server ->
            withRouter(policy(), endpoint(server.url)) { router ->
                val stays = router.ask(short)
                assertEquals(Backend.Local, stays.first().decision.answeredBy)
                assertEquals(RoutingReason.Mode, stays.last().decision.reason)
                assertEquals(FinishReason.MaxTokens, stays.last().finish?.reason)
                assertTrue(stays.text().isNotEmpty())
                assertTrue(stays.dropLast(1).all { it.finish == null })
                assertEquals(0, server.requests.size)
                assertNotNull(router.predictFirstToken(100))

                val goes = router.ask(long)
                assertEquals("from afar", goes.text())
                val decision = goes.first().decision
                assertEquals(Backend.Cloud, decision.answeredBy)
                assertEquals(RoutingReason.PromptOverLimit(decision.promptTokens!!, 40), decision.reason)
                assertNotNull(decision.firstText)
                assertEquals(RoutedFinish(FinishReason.EndOfText, "stop", 5, 2), goes.last().finish)
                assertTrue("there was a king" in server.requests.single())
                assertEquals("Bearer sk-test", server.keys.single())
            }
        }
    }

    @Test
    fun `a request that may not leave the device touches no transport and no key`() = runBlocking<Unit> {
        val touched = AtomicInteger()
        val endpoint = Endpoint("https://api.example.com", "large") {
            apiKey = { touched.incrementAndGet().toString() }
            transport = Transport {
                touched.incrementAndGet()
                throw IOException("touched")
            }
        }
        for (mode in RoutingMode.entries - RoutingMode.CloudOnly) {
            withRouter(policy(mode), endpoint) { router ->
                val decision = router.ask(long, onDeviceOnly = true).last().decision
                assertEquals(Backend.Local, decision.answeredBy)
                assertTrue(decision.onDeviceOnly)
            }
        }
        val error = fails<NiwakiException.NotRouted> {
            withRouter(policy(RoutingMode.CloudOnly), endpoint) { it.ask(short, onDeviceOnly = true) }
        }
        assertEquals(RoutingRefusal.OnDeviceOnly, error.refusal)
        assertNull(error.decision?.answeredBy)
        assertEquals(0, touched.get())
    }

    @Test
    fun `a dead endpoint is said quickly`() {
        for (transport in transports) {
            val began = TimeSource.Monotonic.markNow()
            val error = fails<NiwakiException.EndpointFailed> {
                withRouter(policy(), endpoint(deadUrl(), transport)) { it.ask(long) }
            }
            assertEquals(EndpointFailure.Refused, error.failure)
            assertFalse(error.brokeOff)
            assertEquals("refused", error.decision?.tried?.single()?.code)
            assertTrue(began.elapsedNow() < 5.seconds)
        }
    }

    @Test
    fun `a name that does not exist is said so`() {
        for (transport in transports) {
            val error = fails<NiwakiException.EndpointFailed> {
                withRouter(policy(), endpoint("https://niwaki.invalid", transport)) { it.ask(long) }
            }
            // Where no name server answers, even that takes its time.
            val failures = listOf(EndpointFailure.Dns, EndpointFailure.FirstByteTimeout, EndpointFailure.ConnectTimeout)
            assertTrue(error.failure in failures) { "${error.failure}" }
        }
    }

    @Test
    fun `an answer comes over OkHttp and cancelling closes its connection though it is silent`() = runBlocking<Unit> {
        val okHttp = transports.last()
        goodServer().use { server ->
            withRouter(policy(), endpoint(server.url, okHttp)) { assertEquals("from afar", it.ask(long).text()) }
        }
        val over = CompletableFuture<Unit>()
        val silent = Transport { request ->
            val exchange = okHttp.exchange(request)
            object : Exchange by exchange {
                override fun send() = exchange.send().let { HttpResponse(it.status, it.headers, Watched(it.body, over)) }
            }
        }
        val server = TestServer {
            streamEvents()
            send(piece("some"))
            over.get(20, TimeUnit.SECONDS)
        }
        server.use {
            withRouter(policy(RoutingMode.CloudOnly), endpoint(server.url, silent)) { router ->
                assertEquals("some", router.answer(short).first().text)
                nothingGenerates()
                over.get(20, TimeUnit.SECONDS)
            }
        }
    }

    /** Tells when reading breaks off. */
    private class Watched(body: InputStream, private val over: CompletableFuture<Unit>) : FilterInputStream(body) {
        override fun read(buffer: ByteArray, offset: Int, length: Int): Int =
            try {
                super.read(buffer, offset, length)
            } catch (e: IOException) {
                over.complete(Unit)
                throw e
            }
    }

    @Test
    fun `the device takes over from a dead endpoint and the record says why`() = runBlocking<Unit> {
        withRouter(policy(RoutingMode.PreferCloud), endpoint(deadUrl())) { router ->
            val decision = router.ask(short).first().decision
            assertEquals(Backend.Local, decision.answeredBy)
            val tried = decision.tried.single()
            assertEquals(Backend.Cloud to "refused", tried.backend to tried.code)
        }
    }

    @Test
    fun `the endpoint takes over from a model that has no room and the record says why`() = runBlocking<Unit> {
        goodServer().use { server ->
            withRouter(policy(), endpoint(server.url)) { router ->
                val refusing = GenerateOptions { maxNewTokens = 100_000; contextEnd = ContextEnd.Refuse }
                val answer = router.answer(short, refusing).toList()
                assertEquals("from afar", answer.text())
                val tried = answer.first().decision.tried.single()
                assertEquals(Backend.Local to "does_not_fit", tried.backend to tried.code)
            }
        }
    }

    @Test
    fun `what an endpoint refuses comes with what an app can act on`() = runBlocking<Unit> {
        val statuses = mapOf(
            302 to EndpointFailure.Redirected,
            400 to EndpointFailure.BadRequest,
            401 to EndpointFailure.Unauthorized,
            404 to EndpointFailure.NotFound,
            429 to EndpointFailure.RateLimited,
            500 to EndpointFailure.Server,
        )
        for (transport in transports) for ((status, failure) in statuses) {
            val server = TestServer {
                begin(status, "Retry-After: 7", "Location: https://example.com", "WWW-Authenticate: Bearer")
                send("""{"error": {"message": "secret words", "code": "some_code"}}""")
            }
            server.use {
                val error = fails<NiwakiException.EndpointFailed> {
                    withRouter(policy(RoutingMode.CloudOnly), endpoint(server.url, transport)) { it.ask(short) }
                }
                assertEquals(failure to status, error.failure to error.status)
                assertFalse("secret" in error.toString())
                if (status == 429) assertEquals("some_code" to 7.seconds, error.code to error.retryAfter)
                assertEquals(1, server.requests.size)
            }
        }
    }

    @Test
    fun `cancelling a collector closes the connection`() = runBlocking<Unit> {
        val closed = CompletableFuture<Unit>()
        val server = TestServer {
            streamEvents()
            send(piece("some"))
            try {
                while (true) {
                    send(": alive\n\n")
                    Thread.sleep(20)
                }
            } catch (e: IOException) {
                closed.complete(Unit)
            }
        }
        server.use {
            withRouter(policy(RoutingMode.CloudOnly), endpoint(server.url)) { router ->
                val begun = CompletableDeferred<Unit>()
                val job = launch(Dispatchers.Default) { router.answer(short).collect { begun.complete(Unit) } }
                begun.await()
                job.cancelAndJoin()
                nothingGenerates()
                closed.get(20, TimeUnit.SECONDS)
            }
        }
    }

    @Test
    fun `an answer that breaks off says so with the text it had`() = runBlocking<Unit> {
        val server = TestServer {
            streamEvents()
            send(piece("half"))
        }
        server.use {
            withRouter(policy(RoutingMode.PreferCloud), endpoint(server.url)) { router ->
                // Again and again: the failure follows the text so soon that it might overtake it.
                repeat(50) {
                    val text = StringBuilder()
                    val error = fails<NiwakiException.EndpointFailed> { router.answer(short).collect { text.append(it.text) } }
                    assertEquals("half", text.toString())
                    assertEquals(EndpointFailure.Interrupted to true, error.failure to error.brokeOff)
                    assertEquals(Backend.Cloud, error.decision?.answeredBy)
                }
            }
        }
    }

    @Test
    fun `routers that make no sense`() {
        for (url in listOf("api.example.com", "http://api.example.com")) {
            fails<NiwakiException.InvalidArgument> { Router.create(endpoint = endpoint(url)) }
        }
        fails<NiwakiException.NoChat> { withEngine { Router.create(engine = it) } }
        val error = fails<NiwakiException.NotRouted> { Router.create().use { it.ask(short) } }
        assertEquals(RoutingRefusal.NoEndpoint, error.refusal)
        val router = runBlocking { Router.create() }
        router.close()
        fails<NiwakiException.Closed> { router.ask(short) }
    }
}
