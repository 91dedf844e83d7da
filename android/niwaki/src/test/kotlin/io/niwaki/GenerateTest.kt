package io.niwaki

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class GenerateTest {
    @Test
    fun `text streams token by token and ends with how it ended`() = runBlocking<Unit> {
        withEngine { engine ->
            val tokens = engine.generate("Once upon a time", GenerateOptions { maxNewTokens = 20; seed = 7 }).toList()
            val last = tokens.last()
            assertEquals(FinishReason.MaxTokens, last.finish?.reason)
            assertEquals(20, last.finish?.newTokens)
            assertEquals(20, tokens.count { it.id != null })
            tokens.dropLast(1).forEach { assertNull(it.finish) }
            assertTrue(tokens.joinToString("") { it.text }.isNotBlank())
        }
    }

    @Test
    fun `the same seed tells the same story and another one another`() = runBlocking<Unit> {
        withEngine { engine ->
            suspend fun story(seed: Long) =
                engine.generate("Once", GenerateOptions { maxNewTokens = 30; this.seed = seed }).text()
            assertEquals(story(1), story(1))
            assertNotEquals(story(1), story(2))
        }
    }

    @Test
    fun `keys and values are kept as asked for`() = runBlocking<Unit> {
        val bytes = KvElement.entries.associateWith { element ->
            withEngine(oneThread.copy { kv = element }) { engine ->
                assertEquals(20, engine.generate("Once", GenerateOptions { maxNewTokens = 20 }).toList().count { it.id != null })
                engine.memoryPlan.parts.single { it.name == "keys and values" }.sizeBytes
            }
        }
        assertTrue(bytes.getValue(KvElement.I8) < bytes.getValue(KvElement.F16)) { "$bytes" }
        assertTrue(bytes.getValue(KvElement.F16) < bytes.getValue(KvElement.F32)) { "$bytes" }
        val usual = Engine.plan(demoModel, oneThread).parts.single { it.name == "keys and values" }
        assertEquals(bytes[KvElement.F16], usual.sizeBytes)
    }

    @Test
    fun `a flow is cold and can be collected again`() = runBlocking<Unit> {
        withEngine { engine ->
            val flow = engine.generate("Once", GenerateOptions { maxNewTokens = 5 })
            nothingGenerates()
            assertEquals(flow.text(), flow.text())
        }
    }

    @Test
    fun `a session goes on where it was and can be reset`() = runBlocking<Unit> {
        val options = GenerateOptions { maxNewTokens = 5; sampling = Sampling.Greedy }
        withEngine { engine ->
            engine.session().use { session ->
                val first = session.generate("Once upon a time", options).toList()
                val used = session.usedTokens()
                assertTrue(used > 5) { "$used tokens" }
                session.generate(" there was", options).toList()
                assertTrue(session.usedTokens() > used)
                session.reset()
                assertEquals(0, session.usedTokens())
                assertEquals(first.map { it.text }, session.generate("Once upon a time", options).texts())
            }
        }
    }

    @Test
    fun `a stop string ends the text before it`() = runBlocking<Unit> {
        withEngine { engine ->
            val options = GenerateOptions { maxNewTokens = 60; sampling = Sampling.Greedy }
            val text = engine.generate("Once upon a time", options).text()
            val stop = text.substring(text.length / 2, text.length / 2 + 5)
            val stopped = engine.generate("Once upon a time", options.copy { stopStrings = listOf(stop) }).toList()
            assertEquals(FinishReason.StopString, stopped.last().finish?.reason)
            assertEquals(text.substringBefore(stop), stopped.joinToString("") { it.text })
        }
    }

    @Test
    fun `sessions generate side by side what they generate alone`() = runBlocking<Unit> {
        withEngine { engine ->
            suspend fun story(seed: Long) =
                engine.generate("Once upon a time", GenerateOptions { maxNewTokens = 40; this.seed = seed }).text()
            val alone = (0L until 6).map { story(it) }
            val together = (0L until 6).map { async(Dispatchers.Default) { story(it) } }.awaitAll()
            assertEquals(alone, together)
        }
    }
}
