package io.niwaki.sample

import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.rememberLauncherForActivityResult
import androidx.activity.compose.setContent
import androidx.activity.result.contract.ActivityResultContracts
import androidx.activity.viewModels
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.foundation.rememberScrollState
import androidx.compose.foundation.verticalScroll
import androidx.compose.material3.Button
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.unit.dp
import io.niwaki.MemoryPlan

class MainActivity : ComponentActivity() {
    private val model: WritingModel by viewModels()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContent {
            MaterialTheme { WritingScreen(model) }
        }
    }
}

@Composable
private fun WritingScreen(model: WritingModel) {
    val pick = rememberLauncherForActivityResult(ActivityResultContracts.OpenDocument()) { uri ->
        if (uri != null) model.open(uri)
    }
    Column(
        modifier = Modifier.fillMaxSize().safeDrawingPadding().padding(16.dp),
        verticalArrangement = Arrangement.spacedBy(12.dp),
    ) {
        Row(verticalAlignment = Alignment.CenterVertically, horizontalArrangement = Arrangement.spacedBy(12.dp)) {
            Button(onClick = { pick.launch(arrayOf("*/*")) }, enabled = !model.busy) { Text("Pick a model") }
            Text(model.modelName ?: "a .niwaki file")
        }
        model.memoryPlan?.let { MemoryTable(it) }
        model.problem?.let { Text(it, color = MaterialTheme.colorScheme.error) }
        Text(
            text = model.text,
            modifier = Modifier.weight(1f).fillMaxWidth().verticalScroll(rememberScrollState()),
        )
        PromptRow(
            canSend = model.modelName != null && !model.busy,
            canStop = model.generating,
            onSend = model::send,
            onStop = model::stop,
        )
    }
}

@Composable
private fun PromptRow(canSend: Boolean, canStop: Boolean, onSend: (String) -> Unit, onStop: () -> Unit) {
    var prompt by rememberSaveable { mutableStateOf("Once upon a time") }
    Row(verticalAlignment = Alignment.CenterVertically, horizontalArrangement = Arrangement.spacedBy(12.dp)) {
        OutlinedTextField(prompt, onValueChange = { prompt = it }, modifier = Modifier.weight(1f))
        if (canStop) {
            Button(onClick = onStop) { Text("Stop") }
        } else {
            Button(onClick = { onSend(prompt) }, enabled = canSend && prompt.isNotEmpty()) { Text("Send") }
        }
    }
}

@Composable
private fun MemoryTable(plan: MemoryPlan) {
    Column {
        for (part in plan.parts) {
            MemoryRow(if (part.fileBacked) "${part.name} (file)" else part.name, part.sizeBytes)
        }
        MemoryRow("counts against the app", plan.anonymousBytes)
    }
}

@Composable
private fun MemoryRow(name: String, sizeBytes: Long) {
    Row(Modifier.fillMaxWidth(), Arrangement.SpaceBetween) {
        Text(name, style = MaterialTheme.typography.bodySmall)
        Text("%.1f MiB".format(sizeBytes / 1048576.0), style = MaterialTheme.typography.bodySmall)
    }
}
