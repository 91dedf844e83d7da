package io.niwaki

import io.niwaki.ffi.BundleSource
import io.niwaki.ffi.TokenStream
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Test
import io.niwaki.ffi.Engine as NativeEngine
import io.niwaki.ffi.Session as NativeSession

class CancellationTest {
    private val endless = GenerateOptions { maxNewTokens = Int.MAX_VALUE; contextEnd = ContextEnd.ForgetOldest }
    private val longPrompt = "Once upon a time there was a king. ".repeat(45)

    private suspend fun withNativeSession(use: suspend (NativeSession) -> Unit) {
        val engine = NativeEngine.open(BundleSource.Path(demoModel.path), oneThread.toNative())
        engine.use { engine.session().use { use(it) } }
    }

    /** Ends the stream first. */
    private fun NativeSession.reset(stream: TokenStream) {
        stream.cancel()
        reset()
    }

    @Test
    fun `taking a few tokens ends the native work`() = runBlocking<Unit> {
        withEngine { engine ->
            assertEquals(3, engine.generate("Once", endless).take(3).toList().size)
            nothingGenerates()
        }
    }

    @Test
    fun `cancelling a collector between tokens ends the native work`() = runBlocking<Unit> {
        withEngine { engine ->
            val begun = CompletableDeferred<Unit>()
            val job = launch(Dispatchers.Default) {
                engine.generate("Once", endless).collect { begun.complete(Unit) }
            }
            begun.await()
            job.cancelAndJoin()
            nothingGenerates()
        }
    }

    @Test
    fun `cancelling a collector that does not take tokens ends the native work`() = runBlocking<Unit> {
        withEngine { engine ->
            val begun = CompletableDeferred<Unit>()
            val job = launch(Dispatchers.Default) {
                engine.generate("Once", endless).collect {
                    begun.complete(Unit)
                    awaitCancellation()
                }
            }
            begun.await()
            assertEquals(1, generatingThreads())
            job.cancelAndJoin()
            nothingGenerates()
        }
    }

    @Test
    fun `cancelling a collector in prefill leaves the prompt uncomputed`() = runBlocking<Unit> {
        withNativeSession { session ->
            inTime("a prefill") {
                session.reset()
                val stream = session.generate(longPrompt, endless.toNative())
                val job = launch(Dispatchers.Default) { Lifetime("the test").tokens { stream }.collect {} }
                eventually("the prefill began") { stream.operatorsBegun() > 0u }
                job.cancelAndJoin()
                nothingGenerates()
                session.lenTokens() == 0uL
            }
        }
    }

    @Test
    fun `cancelling in prefill spares most of its operators`() = runBlocking<Unit> {
        withNativeSession { session ->
            suspend fun prefill(cancel: Boolean): ULong {
                session.reset()
                return session.generate(longPrompt, endless.toNative()).use { stream ->
                    val reading = async(Dispatchers.Default) { stream.next() }
                    if (cancel) {
                        eventually("the prefill began") { stream.operatorsBegun() > 0u }
                        stream.cancel()
                    }
                    reading.await()
                    stream.operatorsBegun().also { stream.cancel() }
                }
            }
            val whole = prefill(cancel = false)
            inTime("a prefill") {
                val begun = prefill(cancel = true)
                println("prefill: $begun operators begun when cancelled, $whole when not")
                begun < whole / 2u
            }
        }
    }

    /** On a busy machine work may be over before it is cancelled: tries again. */
    private suspend fun inTime(what: String, cut: suspend () -> Boolean) {
        repeat(50) { if (cut()) return }
        error("$what was never cut short")
    }

    @Test
    fun `a slow collector holds the engine back`() = runBlocking<Unit> {
        withNativeSession { session ->
            // As many operators as a prompt of one token and two more tokens take, however long nobody reads.
            suspend fun begun(read: Int, options: GenerateOptions, wait: suspend (TokenStream) -> Unit): ULong =
                session.generate("Once", options.toNative()).use { stream ->
                    repeat(read) { stream.next() }
                    wait(stream)
                    stream.operatorsBegun().also { session.reset(stream) }
                }
            val two = begun(read = 2, endless.copy { maxNewTokens = 2 }) { assertNull(it.next()) }
            val waiting = begun(read = 1, endless) { stream ->
                eventually("the second token waits") { stream.operatorsBegun() == two }
                delay(200)
            }
            assertEquals(two, waiting)
        }
    }

    @Test
    fun `a session is as good as new after a cancellation`() = runBlocking<Unit> {
        val options = GenerateOptions { maxNewTokens = 10; sampling = Sampling.Greedy }
        withEngine { engine ->
            engine.session().use { session ->
                val before = session.generate("Once", options).text()
                repeat(20) {
                    session.generate(" and", endless).first()
                    session.reset()
                }
                assertEquals(before, session.generate("Once", options).text())
            }
        }
    }
}
