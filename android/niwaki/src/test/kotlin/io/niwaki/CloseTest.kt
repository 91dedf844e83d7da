package io.niwaki

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertInstanceOf
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import java.io.File

class CloseTest {
    private val endless = GenerateOptions { maxNewTokens = Int.MAX_VALUE; contextEnd = ContextEnd.ForgetOldest }

    /** Resident bytes of this process. */
    private fun residentBytes(): Long =
        File("/proc/self/statm").readText().split(' ')[1].toLong() * 4096

    @Test
    fun `a thousand engines opened and closed leave no memory behind`() = runBlocking<Unit> {
        suspend fun cycle() {
            withEngine(oneThread.copy { verifyWeights = false }) { engine ->
                engine.generate("Once", GenerateOptions { maxNewTokens = 1 }).collect()
            }
        }
        repeat(200) { cycle() }
        System.gc()
        val before = residentBytes()
        repeat(1000) { cycle() }
        System.gc()
        val grown = residentBytes() - before
        val one = Engine.plan(demoModel, oneThread).anonymousBytes
        println("1000 engines: %+d KiB resident; one engine plans %d KiB".format(grown / 1024, one / 1024))
        // A leak of a tenth of each would show; the JVM's own heap stays within its bound.
        assertTrue(grown < 1000 * one / 10) { "grew by $grown bytes" }
        assertTrue(grown < 64 shl 20) { "grew by $grown bytes" }
    }

    @Test
    fun `what was closed says so`() = runBlocking<Unit> {
        val engine = Engine.open(demoModel, oneThread)
        val session = engine.session()
        engine.close()
        engine.close()
        assertThrows<NiwakiException.Closed> { runBlocking { engine.session() } }
        assertThrows<NiwakiException.Closed> { runBlocking { engine.generate("Once").collect() } }
        // A session keeps what it needs.
        session.generate("Once").take(2).collect()
        session.close()
        session.close()
        assertThrows<NiwakiException.Closed> { runBlocking { session.generate("Once").collect() } }
        assertThrows<NiwakiException.Closed> { runBlocking { session.usedTokens() } }
    }

    @Test
    fun `closing in the middle of a generation ends it`() = runBlocking<Unit> {
        repeat(20) {
            val engine = Engine.open(demoModel, oneThread)
            val session = engine.session()
            val begun = CompletableDeferred<Unit>()
            val result = async(Dispatchers.Default) {
                runCatching { session.generate("Once", endless).collect { begun.complete(Unit) } }
            }
            begun.await()
            engine.close()
            session.close()
            assertInstanceOf(NiwakiException.Closed::class.java, result.await().exceptionOrNull())
            nothingGenerates()
        }
    }
}
