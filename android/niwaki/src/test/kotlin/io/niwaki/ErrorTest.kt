package io.niwaki

import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import java.io.File

class ErrorTest {
    @TempDir
    lateinit var folder: File

    private inline fun <reified E : NiwakiException> fails(noinline work: suspend () -> Unit): E =
        assertThrows<E> { runBlocking { work() } }

    @Test
    fun `a missing file`() {
        fails<NiwakiException.FileNotFound> { Engine.open(File(folder, "none.niwaki")) }
        fails<NiwakiException.FileNotFound> { Engine.plan(File(folder, "none.niwaki")) }
    }

    @Test
    fun `a file that is no bundle, one that is cut off, one with a wrong bit`() {
        val bytes = demoModel.readBytes()
        val file = File(folder, "damaged.niwaki")
        file.writeText("once upon a time")
        fails<NiwakiException.InvalidBundle> { Engine.open(file) }
        file.writeBytes(bytes.copyOf(bytes.size / 2))
        fails<NiwakiException.InvalidBundle> { Engine.open(file) }
        bytes[bytes.size / 2] = (bytes[bytes.size / 2].toInt() xor 4).toByte()
        file.writeBytes(bytes)
        val error = fails<NiwakiException.InvalidBundle> { Engine.open(file) }
        assertTrue("hash" in error.message.orEmpty()) { "${error.message}" }
        assertNotNull(error.cause)
    }

    @Test
    fun `a bundle of a format to come`() {
        val bytes = demoModel.readBytes()
        val version = bytes.copyOfRange(8, 12).first()
        bytes[8] = (version + 1).toByte()
        val file = File(folder, "later.niwaki").apply { writeBytes(bytes) }
        fails<NiwakiException.UnsupportedBundle> { Engine.open(file) }
    }

    @Test
    fun `a model that takes more memory than it may`() {
        val error = fails<NiwakiException.NotEnoughMemory> {
            Engine.open(demoModel, OpenOptions(memoryLimitBytes = 1000))
        }
        assertEquals(1000, error.limitBytes)
        val plan = runBlocking { Engine.plan(demoModel) }
        assertEquals(plan.anonymousBytes, error.neededBytes)
        assertEquals(plan.parts.filterNot { it.fileBacked }.sumOf { it.sizeBytes }, plan.anonymousBytes)
        fails<NiwakiException.NotEnoughMemory> {
            Engine.open(demoModel, OpenOptions(memoryLimitBytes = plan.anonymousBytes - 1))
        }
        runBlocking { Engine.open(demoModel, OpenOptions(memoryLimitBytes = plan.anonymousBytes)).close() }
    }

    @Test
    fun `a prompt that the context has no room for`() {
        val error = fails<NiwakiException.ContextFull> {
            withEngine(oneThread.copy(contextTokens = 8)) { it.generate("Once upon a time ".repeat(9)).collect() }
        }
        assertEquals(8, error.contextTokens)
        assertTrue(error.neededTokens > 8) { "${error.neededTokens}" }
        fails<NiwakiException.ContextFull> {
            val options = GenerateOptions(maxNewTokens = 600, contextEnd = ContextEnd.Refuse)
            withEngine { it.generate("Once", options).collect() }
        }
    }

    @Test
    fun `a context that fills up ends the text`() = runBlocking<Unit> {
        withEngine(oneThread.copy(contextTokens = 16)) { engine ->
            var finish: Finish? = null
            engine.generate("Once", GenerateOptions(sampling = Sampling.Greedy)).collect { finish = it.finish }
            assertEquals(FinishReason.ContextFull, finish?.reason)
        }
    }

    @Test
    fun `options that make no sense`() {
        fails<NiwakiException.InvalidArgument> {
            withEngine { it.generate("Once", GenerateOptions(sampling = Sampling(temperature = -1f))).collect() }
        }
        assertThrows<IllegalArgumentException> { GenerateOptions(maxNewTokens = -1) }
    }

    @Test
    fun `two flows of one session at once`() = runBlocking<Unit> {
        withEngine { engine ->
            engine.session().use { session ->
                session.generate("Once", GenerateOptions(maxNewTokens = 50)).first {
                    fails<NiwakiException.Busy> { session.generate("Once").collect() }
                    fails<NiwakiException.Busy> { session.usedTokens() }
                    true
                }
                session.generate("Once", GenerateOptions(maxNewTokens = 2)).collect()
            }
        }
    }

    @Test
    fun `a file descriptor that is none`() {
        fails<NiwakiException.InvalidArgument> { Engine.open(fd = -1) }
        fails<NiwakiException.FileUnreadable> { Engine.open(fd = 9999) }
    }
}
