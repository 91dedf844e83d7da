package io.niwaki

import com.sun.jna.Library
import com.sun.jna.Native
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import java.io.File

/** An asset in an app package is a part of an open file. */
class DescriptorTest {
    @TempDir
    lateinit var folder: File

    private interface C : Library {
        fun open(path: String, flags: Int): Int
        fun close(fd: Int): Int
    }

    private val c = Native.load("c", C::class.java)

    @Test
    fun `a bundle opens from the middle of a file, and the descriptor can be closed`() = runBlocking<Unit> {
        val bundle = demoModel.readBytes()
        val before = 4096
        val file = File(folder, "package.apk").apply {
            writeBytes(ByteArray(before) { 7 } + bundle + ByteArray(1000) { 9 })
        }
        val options = GenerateOptions { maxNewTokens = 10 }
        val expected = withEngine { it.generate("Once", options).text() }

        val fd = c.open(file.path, 0)
        val plan = Engine.plan(fd, before.toLong(), bundle.size.toLong(), oneThread)
        val engines = listOf(
            Engine.open(fd, before.toLong(), bundle.size.toLong(), oneThread),
            Engine.open(fd, before.toLong(), options = oneThread),
        )
        assertEquals(0, c.close(fd)) { "the descriptor was still ours to close" }
        for (engine in engines) {
            assertEquals(plan, engine.memoryPlan)
            assertEquals(expected, engine.use { it.generate("Once", options).text() })
        }
    }

    @Test
    fun `a length that is not the bundle's is refused`() {
        val fd = c.open(demoModel.path, 0)
        try {
            assertThrows<NiwakiException.InvalidBundle> {
                runBlocking { Engine.open(fd, length = demoModel.length() - 1) }
            }
            assertThrows<NiwakiException> { runBlocking { Engine.open(fd, offset = 1) } }
        } finally {
            c.close(fd)
        }
    }
}
